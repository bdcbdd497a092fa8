/* A libnvidia-ml.so.1 for machines without a GPU: what the real NVML binding (pynvml) loads.
 *
 * Which GPUs there are is said by the text file $FAKE_NVML, which is read again on every call, so
 * that a test can change it at any time. One GPU per line, in the order of their index:
 *
 *     UUID|NAME|TOTAL_MIB|USED_MIB|UTILISATION_PERCENT|TEMPERATURE_C|ERROR
 *
 * ERROR is the nvmlReturn_t of every question about this GPU (15: it is lost), 0 if it is fine.
 * A line `init N` makes nvmlInit return N (9: the driver is not loaded).
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

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
};

#define MAX_GPUS 64
#define MAX_PROCESSES 64
#define MIB (1ull << 20)
#define PROCESS_OVERHEAD (200 * MIB)
#define DRIVER_RESERVED (300 * MIB) /* part of `used`; told apart from it by the call's version 2 */
#define NO_MIG_INSTANCE 0xFFFFFFFFu

typedef struct {
    char uuid[96];
    char name[96];
    unsigned long long total;
    unsigned long long used_by_others;
    unsigned utilisation;
    unsigned temperature;
    int error;
} Gpu;

typedef struct {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance;
    unsigned compute_instance;
} Process;

/* A handle is the address of a UUID that is kept for the life of the program: it stays valid,
 * and means the same GPU, whatever the file says later. */
typedef char Uuid[96];
typedef const Uuid *Handle;

static Uuid known_uuids[MAX_GPUS];
static int users; /* nvmlInit minus nvmlShutdown */

/* ---- the state file ---- */

static int parse_gpu(char *line, Gpu *gpu) {
    char *fields[7];
    for (int i = 0; i < 7; i++) {
        fields[i] = strsep(&line, "|");
        if (!fields[i])
            return 0;
    }
    memset(gpu, 0, sizeof *gpu);
    snprintf(gpu->uuid, sizeof gpu->uuid, "%s", fields[0]);
    snprintf(gpu->name, sizeof gpu->name, "%s", fields[1]);
    gpu->total = strtoull(fields[2], NULL, 10) * MIB;
    gpu->used_by_others = strtoull(fields[3], NULL, 10) * MIB;
    gpu->utilisation = (unsigned)atoi(fields[4]);
    gpu->temperature = (unsigned)atoi(fields[5]);
    gpu->error = atoi(fields[6]);
    return 1;
}

/* Reads the file into `gpus` and returns their number; `init_result` is nvmlInit's. */
static int read_state(Gpu *gpus, int *init_result) {
    int count = 0;
    char line[1024];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    *init_result = file ? OK : DRIVER_NOT_LOADED;
    if (!file)
        return 0;
    while (count < MAX_GPUS && fgets(line, sizeof line, file)) {
        if (sscanf(line, "init %d", init_result) == 1)
            continue;
        count += parse_gpu(line, &gpus[count]);
    }
    fclose(file);
    return count;
}

static int all_gpus(Gpu *gpus, int *count) {
    int init_result;
    if (!users)
        return UNINITIALIZED;
    *count = read_state(gpus, &init_result);
    return OK;
}

/* ---- handles ---- */

static Handle handle_of(const char *uuid) {
    for (int i = 0; i < MAX_GPUS; i++) {
        if (!known_uuids[i][0])
            strcpy(known_uuids[i], uuid);
        if (!strcmp(known_uuids[i], uuid))
            return &known_uuids[i];
    }
    return NULL;
}

static int find_gpu(Handle handle, Gpu *found, unsigned *index) {
    Gpu gpus[MAX_GPUS];
    int count;
    int result = all_gpus(gpus, &count);
    if (result != OK)
        return result;
    if (handle < known_uuids || handle >= known_uuids + MAX_GPUS)
        return INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) {
        if (!strcmp(gpus[i].uuid, *handle)) {
            *found = gpus[i];
            *index = (unsigned)i;
            return gpus[i].error;
        }
    }
    return GPU_IS_LOST;
}

/* Begins each function about one GPU: `gpu` and `index` are that one's from here on. */
#define FIND_GPU(handle)                                                                           \
    Gpu gpu;                                                                                       \
    unsigned index;                                                                                \
    int find_result = find_gpu(handle, &gpu, &index);                                              \
    if (find_result != OK)                                                                         \
    return find_result

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

/* Fills `processes` with those that use the GPU and returns their number. */
static unsigned processes_of(const Gpu *gpu, Process *processes) {
    unsigned count = 0;
    struct dirent *entry;
    DIR *proc = opendir("/proc");
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

static unsigned long long free_memory(const Gpu *gpu) {
    Process processes[MAX_PROCESSES];
    unsigned count = processes_of(gpu, processes);
    unsigned long long taken = gpu->used_by_others + DRIVER_RESERVED;
    for (unsigned i = 0; i < count; i++)
        taken += processes[i].memory;
    return taken < gpu->total ? gpu->total - taken : 0;
}

/* ---- NVML: the library ---- */

int nvmlInit_v2(void) {
    Gpu gpus[MAX_GPUS];
    int result;
    read_state(gpus, &result);
    users += result == OK;
    return result;
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
    Gpu gpus[MAX_GPUS];
    return all_gpus(gpus, (int *)count);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle *handle) {
    Gpu gpus[MAX_GPUS];
    int count;
    int result = all_gpus(gpus, &count);
    if (result != OK)
        return result;
    if (index >= (unsigned)count)
        return INVALID_ARGUMENT;
    *handle = handle_of(gpus[index].uuid);
    return gpus[index].error;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Handle *handle) {
    Gpu gpus[MAX_GPUS];
    int count;
    int result = all_gpus(gpus, &count);
    if (result != OK)
        return result;
    for (int i = 0; i < count; i++) {
        if (!strcmp(gpus[i].uuid, uuid)) {
            *handle = handle_of(uuid);
            return gpus[i].error;
        }
    }
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
    rates->gpu = gpu.utilisation;
    rates->memory = gpu.utilisation / 2;
    return OK;
}

int nvmlDeviceGetTemperature(Handle handle, int sensor, unsigned *temperature) {
    (void)sensor;
    FIND_GPU(handle);
    *temperature = gpu.temperature;
    return OK;
}

typedef struct {
    unsigned version;
    int sensor, temperature;
} TemperatureV1;

int nvmlDeviceGetTemperatureV(Handle handle, TemperatureV1 *reading) {
    FIND_GPU(handle);
    reading->temperature = (int)gpu.temperature;
    return OK;
}

int nvmlDeviceGetPowerUsage(Handle handle, unsigned *milliwatts) {
    FIND_GPU(handle);
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

/* Called twice by its users: with room for none it tells how many there are. */
int nvmlDeviceGetComputeRunningProcesses_v3(Handle handle, unsigned *count, Process *result) {
    FIND_GPU(handle);
    Process processes[MAX_PROCESSES];
    unsigned room = *count;
    *count = processes_of(&gpu, processes);
    if (*count > room)
        return INSUFFICIENT_SIZE;
    memcpy(result, processes, *count * sizeof *processes);
    return OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Handle handle, unsigned *count, Process *result) {
    (void)result;
    FIND_GPU(handle);
    *count = 0;
    return OK;
}

/* These GPUs cannot be partitioned, as GeForce cards cannot. */
int nvmlDeviceGetMigMode(Handle handle, unsigned *current, unsigned *pending) {
    (void)current;
    (void)pending;
    FIND_GPU(handle);
    return NOT_SUPPORTED;
}

int nvmlDeviceGetCudaComputeCapability(Handle handle, int *major, int *minor) {
    FIND_GPU(handle);
    *major = 8;
    *minor = 6;
    return OK;
}
