/* A libnvidia-ml.so.1 for machines without a GPU: what the real NVML binding (pynvml) loads.
 *
 * What there is is said by the text file $FAKE_NVML, which is read again on every call, so that a
 * test can change it at any time (nvml.py writes it). One line for each GPU, in the order of their
 * index:
 *
 *     UUID|NAME|TOTAL_MIB|USED_MIB|UTILISATION_PERCENT|TEMPERATURE_C|ERROR|MIG|ECC|REMAP
 *
 * ERROR is the nvmlReturn_t of every question about this GPU (15: it is lost), 0 if it is fine; -1:
 * the question is not answered before this line changes, as by a driver that hangs. MIG is -1 (not
 * supported), 0 (off) or 1 (on); ECC the number of uncorrected errors, -1 without ECC; REMAP is 1
 * when a row of memory waits for a reset to be remapped, 2 when that failed, -1 without it.
 *
 * Other lines:
 *
 *     init N                              nvmlInit returns N (9: the driver is not loaded; -1: never)
 *     lacks NAME                          the driver is older than the function NAME
 *     slice PARENT|UUID|NAME|TOTAL|USED   a MIG device of the GPU PARENT
 *     process C|UUID|PID|MIB              a process that computes (C) or draws (G) there
 *     followed                            processes are those lines, and nobody else
 *     xid UUID|SERIAL|XID                 the driver reports an Xid; SERIAL grows with each
 *
 * USED_MIB is what others use. On top of it comes every live process that has the GPU's UUID in the
 * CUDA_VISIBLE_DEVICES of its environment and a model file in its arguments (`-m FILE`): it uses
 * the size of that file, divided by the number of its GPUs, plus 200 MiB. So the memory comes back
 * by itself when a llama-server ends, however it ends.
 *
 * A GPU that leaves the file is lost to those who hold its handle.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    NEVER = -1,
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    FUNCTION_NOT_FOUND = 13,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999,
};

#define MAX_GPUS 64
#define MAX_KNOWN 4096 /* UUIDs in the life of a program */
#define MAX_PROCESSES 64
#define MAX_LACKS 8
#define MAX_XIDS 16
#define MAX_SLICES 7 /* of a GPU */
#define LOOK_AGAIN_US 20000
#define MIB (1ull << 20)
#define PROCESS_OVERHEAD (200 * MIB)
#define DRIVER_RESERVED (300 * MIB) /* part of `used`; told apart from it by the call's version 2 */
#define NO_MIG_INSTANCE 0xFFFFFFFFu

typedef struct {
    char uuid[96];
    char name[96];
    char parent[96]; /* of a MIG device; else "" */
    unsigned long long total;
    unsigned long long used_by_others;
    unsigned utilisation;
    unsigned temperature;
    int error;
    int mig;
    int ecc;
    int remap;
} Gpu;

typedef struct {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance;
    unsigned compute_instance;
} Process;

typedef struct {
    char kind;
    char uuid[96];
    Process process;
} Listed;

typedef struct {
    char uuid[96];
    unsigned serial;
    unsigned xid;
} Xid;

typedef struct {
    Gpu gpus[MAX_GPUS]; /* and MIG devices */
    int count;
    Listed listed[MAX_PROCESSES];
    unsigned listed_count;
    char lacks[MAX_LACKS][64];
    int lacks_count;
    Xid xids[MAX_XIDS];
    int xids_count;
    int followed;
    int init_result;
} State;

/* A handle is the address of a UUID that is kept for the life of the program: it stays valid,
 * and means the same GPU, whatever the file says later. */
typedef char Uuid[96];
typedef const Uuid *Handle;

static Uuid known_uuids[MAX_KNOWN];
static int users; /* nvmlInit minus nvmlShutdown */

/* ---- the state file ---- */

/* Splits `line` at its bars into exactly `count` fields. */
static int split(char *line, char **fields, int count) {
    line[strcspn(line, "\n")] = 0;
    for (int i = 0; i < count; i++) {
        fields[i] = strsep(&line, "|");
        if (!fields[i])
            return 0;
    }
    return 1;
}

static void parse_gpu(char *line, State *state) {
    char *fields[10];
    if (state->count == MAX_GPUS || !split(line, fields, 10))
        return;
    Gpu *gpu = &state->gpus[state->count++];
    snprintf(gpu->uuid, sizeof gpu->uuid, "%s", fields[0]);
    snprintf(gpu->name, sizeof gpu->name, "%s", fields[1]);
    gpu->total = strtoull(fields[2], NULL, 10) * MIB;
    gpu->used_by_others = strtoull(fields[3], NULL, 10) * MIB;
    gpu->utilisation = (unsigned)atoi(fields[4]);
    gpu->temperature = (unsigned)atoi(fields[5]);
    gpu->error = atoi(fields[6]);
    gpu->mig = atoi(fields[7]);
    gpu->ecc = atoi(fields[8]);
    gpu->remap = atoi(fields[9]);
}

static void parse_slice(char *line, State *state) {
    char *fields[5];
    if (state->count == MAX_GPUS || !split(line, fields, 5))
        return;
    Gpu *gpu = &state->gpus[state->count++];
    snprintf(gpu->parent, sizeof gpu->parent, "%s", fields[0]);
    snprintf(gpu->uuid, sizeof gpu->uuid, "%s", fields[1]);
    snprintf(gpu->name, sizeof gpu->name, "%s", fields[2]);
    gpu->total = strtoull(fields[3], NULL, 10) * MIB;
    gpu->used_by_others = strtoull(fields[4], NULL, 10) * MIB;
}

static void parse_process(char *line, State *state) {
    char *fields[4];
    if (state->listed_count == MAX_PROCESSES || !split(line, fields, 4))
        return;
    Listed *listed = &state->listed[state->listed_count++];
    listed->kind = fields[0][0];
    snprintf(listed->uuid, sizeof listed->uuid, "%s", fields[1]);
    listed->process = (Process){
        .pid = (unsigned)atoi(fields[2]),
        .memory = strtoull(fields[3], NULL, 10) * MIB,
        .gpu_instance = NO_MIG_INSTANCE,
        .compute_instance = NO_MIG_INSTANCE,
    };
}

static void parse_xid(char *line, State *state) {
    char *fields[3];
    if (state->xids_count == MAX_XIDS || !split(line, fields, 3))
        return;
    Xid *xid = &state->xids[state->xids_count++];
    snprintf(xid->uuid, sizeof xid->uuid, "%s", fields[0]);
    xid->serial = (unsigned)atoi(fields[1]);
    xid->xid = (unsigned)atoi(fields[2]);
}

static void parse_line(char *line, State *state) {
    if (sscanf(line, "init %d", &state->init_result) == 1)
        return;
    if (!strncmp(line, "followed", 8))
        state->followed = 1;
    else if (!strncmp(line, "lacks ", 6) && state->lacks_count < MAX_LACKS)
        sscanf(line, "lacks %63s", state->lacks[state->lacks_count++]);
    else if (!strncmp(line, "slice ", 6))
        parse_slice(line + 6, state);
    else if (!strncmp(line, "process ", 8))
        parse_process(line + 8, state);
    else if (!strncmp(line, "xid ", 4))
        parse_xid(line + 4, state);
    else
        parse_gpu(line, state);
}

static void read_state(State *state) {
    char line[1024];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    memset(state, 0, sizeof *state);
    state->init_result = file ? OK : DRIVER_NOT_LOADED;
    while (file && fgets(line, sizeof line, file))
        parse_line(line, state);
    if (file)
        fclose(file);
}

static int require_state(State *state) {
    read_state(state);
    return users ? OK : UNINITIALIZED;
}

static int is_lacking(const char *function) {
    State state;
    read_state(&state);
    for (int i = 0; i < state.lacks_count; i++)
        if (!strcmp(state.lacks[i], function))
            return 1;
    return 0;
}

/* Begins a function that a driver may be too old for. */
#define MAY_LACK                                                                                   \
    if (is_lacking(__func__))                                                                      \
    return FUNCTION_NOT_FOUND

/* ---- handles ---- */

static Handle handle_of(const char *uuid) {
    for (int i = 0; i < MAX_KNOWN; i++) {
        if (!known_uuids[i][0])
            strcpy(known_uuids[i], uuid);
        if (!strcmp(known_uuids[i], uuid))
            return &known_uuids[i];
    }
    return NULL;
}

/* Finds a GPU by its UUID. A MIG device is as well as the GPU that it is a part of. */
static int look_up(const State *state, const char *uuid, Gpu *found, unsigned *index) {
    unsigned number = 0;
    for (int i = 0; i < state->count; i++) {
        const Gpu *gpu = &state->gpus[i];
        if (!strcmp(gpu->uuid, uuid)) {
            Gpu parent = *gpu;
            int error = gpu->parent[0] ? look_up(state, gpu->parent, &parent, index) : gpu->error;
            *found = *gpu;
            *index = gpu->parent[0] ? *index : number;
            return error;
        }
        number += !gpu->parent[0];
    }
    return GPU_IS_LOST;
}

static int find_gpu(Handle handle, Gpu *found, unsigned *index) {
    State state;
    if (handle < known_uuids || handle >= known_uuids + MAX_KNOWN)
        return INVALID_ARGUMENT;
    for (;;) {
        int result = require_state(&state);
        if (result == OK)
            result = look_up(&state, *handle, found, index);
        if (result != NEVER)
            return result;
        usleep(LOOK_AGAIN_US);
    }
}

/* Begins each function about one GPU: `gpu` and `index` are that one's from here on. */
#define FIND_GPU(handle)                                                                           \
    Gpu gpu;                                                                                       \
    unsigned index = 0;                                                                            \
    int find_result = find_gpu(handle, &gpu, &index);                                              \
    if (find_result != OK)                                                                         \
    return find_result

/* Goes on only for a whole GPU: a MIG device cannot say this. */
#define REQUIRE_WHOLE_GPU                                                                          \
    if (gpu.parent[0])                                                                             \
    return NOT_SUPPORTED

static int copy_text(char *target, unsigned size, const char *text) {
    if (size <= strlen(text))
        return INSUFFICIENT_SIZE;
    strcpy(target, text);
    return OK;
}

/* ---- live processes ---- */

/* Reads /proc/PID/NAME, a list of NUL-terminated strings, and returns its length. */
static size_t read_strings(const char *pid, const char *name, char *buffer, size_t size) {
    char path[300];
    snprintf(path, sizeof path, "/proc/%s/%s", pid, name);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    size_t length = fread(buffer, 1, size - 1, file);
    fclose(file);
    buffer[length] = 0;
    return length;
}

#define FOR_EACH_STRING(string, buffer, length)                                                    \
    for (char *string = buffer; string < buffer + length; string += strlen(string) + 1)

/* Returns how many GPUs the process may see, 0 if `uuid` is none of them. */
static unsigned count_visible(const char *pid, const char *uuid) {
    static char environment[1 << 17];
    static const char name[] = "CUDA_VISIBLE_DEVICES=";
    size_t length = read_strings(pid, "environ", environment, sizeof environment);
    FOR_EACH_STRING(entry, environment, length) {
        if (strncmp(entry, name, sizeof name - 1) || !strstr(entry, uuid))
            continue;
        unsigned count = 1;
        for (char *c = entry; *c; c++)
            count += *c == ',';
        return count;
    }
    return 0;
}

/* Returns the size of the file that follows `-m` or `--model`, 0 without such a file. */
static unsigned long long model_size(const char *pid) {
    static char arguments[1 << 16];
    struct stat status;
    int is_next = 0;
    size_t length = read_strings(pid, "cmdline", arguments, sizeof arguments);
    FOR_EACH_STRING(argument, arguments, length) {
        if (is_next && !stat(argument, &status) && S_ISREG(status.st_mode))
            return (unsigned long long)status.st_size;
        is_next = !strcmp(argument, "-m") || !strcmp(argument, "--model");
    }
    return 0;
}

/* Fills `processes` with those listed for the GPU, of one kind, and returns their number. */
static unsigned listed_processes(const Gpu *gpu, const State *state, char kind, Process *processes) {
    unsigned count = 0;
    for (unsigned i = 0; i < state->listed_count; i++)
        if (state->listed[i].kind == kind && !strcmp(state->listed[i].uuid, gpu->uuid))
            processes[count++] = state->listed[i].process;
    return count;
}

/* Fills `processes` with those that compute on the GPU and returns their number. */
static unsigned processes_of(const Gpu *gpu, Process *processes) {
    State state;
    read_state(&state);
    unsigned count = listed_processes(gpu, &state, 'C', processes);
    struct dirent *entry;
    DIR *proc = state.followed ? NULL : opendir("/proc");
    while (proc && count < MAX_PROCESSES && (entry = readdir(proc))) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        unsigned visible = count_visible(entry->d_name, gpu->uuid);
        unsigned long long size = visible ? model_size(entry->d_name) : 0;
        if (size)
            processes[count++] = (Process){
                .pid = (unsigned)atoi(entry->d_name),
                .memory = size / visible + PROCESS_OVERHEAD,
                .gpu_instance = NO_MIG_INSTANCE,
                .compute_instance = NO_MIG_INSTANCE,
            };
    }
    if (proc)
        closedir(proc);
    return count;
}

static unsigned drawing_processes_of(const Gpu *gpu, Process *processes) {
    State state;
    read_state(&state);
    return listed_processes(gpu, &state, 'G', processes);
}

static unsigned long long free_memory(const Gpu *gpu) {
    Process processes[MAX_PROCESSES];
    unsigned count = processes_of(gpu, processes);
    unsigned long long taken = gpu->used_by_others + DRIVER_RESERVED;
    for (unsigned i = 0; i < count; i++)
        taken += processes[i].memory;
    count = drawing_processes_of(gpu, processes);
    for (unsigned i = 0; i < count; i++)
        taken += processes[i].memory;
    return taken < gpu->total ? gpu->total - taken : 0;
}

/* ---- NVML: the library ---- */

int nvmlInit_v2(void) {
    State state;
    for (read_state(&state); state.init_result == NEVER; read_state(&state))
        usleep(LOOK_AGAIN_US);
    users += state.init_result == OK;
    return state.init_result;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return nvmlInit_v2();
}

int nvmlShutdown(void) {
    if (!users)
        return UNINITIALIZED;
    users--;
    return OK;
}

const char *nvmlErrorString(int result) {
    switch (result) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case FUNCTION_NOT_FOUND: return "Function Not Found";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    return users ? copy_text(version, size, "575.57.08") : UNINITIALIZED;
}

int nvmlSystemGetNVMLVersion(char *version, unsigned size) {
    return users ? copy_text(version, size, "12.575.57.08") : UNINITIALIZED;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 12090;
    return users ? OK : UNINITIALIZED;
}

/* ---- NVML: finding GPUs ---- */

int nvmlDeviceGetCount_v2(unsigned *count) {
    State state;
    int result = require_state(&state);
    *count = 0;
    for (int i = 0; i < state.count; i++)
        *count += !state.gpus[i].parent[0];
    return result;
}

/* Returns the handle of the GPU with this UUID, unless there is something wrong with it. */
static int give_handle(const char *uuid, Handle *handle) {
    *handle = handle_of(uuid);
    FIND_GPU(*handle);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle *handle) {
    State state;
    int result = require_state(&state);
    if (result != OK)
        return result;
    for (int i = 0; i < state.count; i++)
        if (!state.gpus[i].parent[0] && !index--)
            return give_handle(state.gpus[i].uuid, handle);
    return INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Handle *handle) {
    State state;
    int result = require_state(&state);
    if (result != OK)
        return result;
    for (int i = 0; i < state.count; i++)
        if (!strcmp(state.gpus[i].uuid, uuid))
            return give_handle(uuid, handle);
    return NOT_FOUND;
}

/* ---- NVML: one GPU ---- */

int nvmlDeviceGetIndex(Handle handle, unsigned *result) {
    FIND_GPU(handle);
    *result = index;
    return OK;
}

int nvmlDeviceGetMinorNumber(Handle handle, unsigned *result) {
    return nvmlDeviceGetIndex(handle, result);
}

int nvmlDeviceGetName(Handle handle, char *name, unsigned size) {
    FIND_GPU(handle);
    return copy_text(name, size, gpu.name);
}

int nvmlDeviceGetUUID(Handle handle, char *uuid, unsigned size) {
    FIND_GPU(handle);
    return copy_text(uuid, size, gpu.uuid);
}

typedef struct {
    unsigned long long total, free, used;
} Memory;

int nvmlDeviceGetMemoryInfo(Handle handle, Memory *memory) {
    FIND_GPU(handle);
    memory->total = gpu.total;
    memory->free = free_memory(&gpu);
    memory->used = memory->total - memory->free;
    return OK;
}

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} MemoryV2;

int nvmlDeviceGetMemoryInfo_v2(Handle handle, MemoryV2 *memory) {
    FIND_GPU(handle);
    if (memory->version != (sizeof *memory | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    memory->total = gpu.total;
    memory->reserved = DRIVER_RESERVED;
    memory->free = free_memory(&gpu);
    memory->used = memory->total - memory->reserved - memory->free;
    return OK;
}

typedef struct {
    unsigned gpu, memory;
} Utilisation;

int nvmlDeviceGetUtilizationRates(Handle handle, Utilisation *rates) {
    FIND_GPU(handle);
    REQUIRE_WHOLE_GPU;
    rates->gpu = gpu.utilisation;
    rates->memory = gpu.utilisation / 2;
    return OK;
}

int nvmlDeviceGetTemperature(Handle handle, int sensor, unsigned *temperature) {
    (void)sensor;
    FIND_GPU(handle);
    REQUIRE_WHOLE_GPU;
    *temperature = gpu.temperature;
    return OK;
}

typedef struct {
    unsigned version;
    int sensor, temperature;
} TemperatureV1;

int nvmlDeviceGetTemperatureV(Handle handle, TemperatureV1 *reading) {
    FIND_GPU(handle);
    REQUIRE_WHOLE_GPU;
    reading->temperature = (int)gpu.temperature;
    return OK;
}

int nvmlDeviceGetPowerUsage(Handle handle, unsigned *milliwatts) {
    FIND_GPU(handle);
    REQUIRE_WHOLE_GPU;
    *milliwatts = 20000 + 1000 * gpu.utilisation;
    return OK;
}

typedef struct {
    char legacy_bus_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} Pci;

int nvmlDeviceGetPciInfo_v3(Handle handle, Pci *pci) {
    FIND_GPU(handle);
    memset(pci, 0, sizeof *pci);
    pci->bus = index + 1;
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    snprintf(pci->legacy_bus_id, sizeof pci->legacy_bus_id, "0000:%02X:00.0", pci->bus);
    return OK;
}

static int give_processes(const Process *processes, unsigned found, unsigned *count, Process *result) {
    unsigned room = *count;
    *count = found;
    if (found > room)
        return INSUFFICIENT_SIZE;
    memcpy(result, processes, found * sizeof *processes);
    return OK;
}

/* Called twice by its users: with room for none it tells how many there are. */
int nvmlDeviceGetComputeRunningProcesses_v2(Handle handle, unsigned *count, Process *result) {
    MAY_LACK;
    FIND_GPU(handle);
    Process processes[MAX_PROCESSES];
    return give_processes(processes, processes_of(&gpu, processes), count, result);
}

int nvmlDeviceGetComputeRunningProcesses_v3(Handle handle, unsigned *count, Process *result) {
    MAY_LACK;
    return nvmlDeviceGetComputeRunningProcesses_v2(handle, count, result);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(Handle handle, unsigned *count, Process *result) {
    MAY_LACK;
    FIND_GPU(handle);
    Process processes[MAX_PROCESSES];
    return give_processes(processes, drawing_processes_of(&gpu, processes), count, result);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Handle handle, unsigned *count, Process *result) {
    MAY_LACK;
    return nvmlDeviceGetGraphicsRunningProcesses_v2(handle, count, result);
}

/* ---- NVML: MIG ---- */

/* GeForce cards cannot be partitioned. */
int nvmlDeviceGetMigMode(Handle handle, unsigned *current, unsigned *pending) {
    MAY_LACK;
    FIND_GPU(handle);
    if (gpu.parent[0] || gpu.mig < 0)
        return NOT_SUPPORTED;
    *current = *pending = (unsigned)gpu.mig;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(Handle handle, unsigned *count) {
    FIND_GPU(handle);
    *count = gpu.mig < 0 ? 0 : MAX_SLICES;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Handle handle, unsigned slice, Handle *device) {
    State state;
    FIND_GPU(handle);
    read_state(&state);
    for (int i = 0; i < state.count; i++)
        if (!strcmp(state.gpus[i].parent, gpu.uuid) && !slice--)
            return give_handle(state.gpus[i].uuid, device);
    return NOT_FOUND;
}

/* ---- NVML: health ---- */

int nvmlDeviceGetTotalEccErrors(Handle handle, int type, int counter, unsigned long long *count) {
    (void)counter;
    FIND_GPU(handle);
    if (gpu.parent[0] || gpu.ecc < 0)
        return NOT_SUPPORTED;
    *count = type == 1 ? (unsigned long long)gpu.ecc : 0; /* 1: uncorrected */
    return OK;
}

int nvmlDeviceGetRemappedRows(Handle handle, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
    MAY_LACK;
    FIND_GPU(handle);
    if (gpu.parent[0] || gpu.remap < 0)
        return NOT_SUPPORTED;
    *corrected = 0;
    *uncorrected = *pending = gpu.remap == 1;
    *failed = gpu.remap == 2;
    return OK;
}

/* ---- NVML: events ---- */

/* An event set is the serial of the last Xid that it knows of; there is one in a process. */
static unsigned last_xid;

int nvmlEventSetCreate(unsigned **set) {
    State state;
    int result = require_state(&state);
    last_xid = 0;
    for (int i = 0; i < state.xids_count; i++)
        if (state.xids[i].serial > last_xid)
            last_xid = state.xids[i].serial;
    *set = &last_xid;
    return result;
}

int nvmlEventSetFree(unsigned *set) {
    (void)set;
    return OK;
}

int nvmlDeviceRegisterEvents(Handle handle, unsigned long long types, unsigned *set) {
    (void)types;
    (void)set;
    FIND_GPU(handle);
    return OK;
}

typedef struct {
    Handle device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} Event;

int nvmlEventSetWait_v2(unsigned *set, Event *event, unsigned timeout_ms) {
    State state;
    int result = require_state(&state);
    (void)timeout_ms; /* nobody waits here */
    for (int i = 0; result == OK && i < state.xids_count; i++) {
        if (state.xids[i].serial <= *set)
            continue;
        *set = state.xids[i].serial;
        *event = (Event){
            .device = handle_of(state.xids[i].uuid),
            .type = 8, /* nvmlEventTypeXidCriticalError */
            .data = state.xids[i].xid,
            .gpu_instance = NO_MIG_INSTANCE,
            .compute_instance = NO_MIG_INSTANCE,
        };
        return OK;
    }
    return result == OK ? TIMEOUT : result;
}

/* ---- NVML: the rest ---- */

int nvmlDeviceGetCudaComputeCapability(Handle handle, int *major, int *minor) {
    FIND_GPU(handle);
    *major = 8;
    *minor = 6;
    return OK;
}
