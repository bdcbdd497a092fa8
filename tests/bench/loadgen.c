/* Load generator for OpenAI-compatible servers on 127.0.0.1: one process, one epoll loop.
 *
 *   loadgen -p PORT [options]            prints one JSON object
 *
 *   -c N    connections (1)              -n N   requests in all, without bound if not given
 *   -w S    warm up for S seconds (0)    -t S   then measure for S seconds (10)
 *   -b N    bytes of the prompt (1024)   -r US  open one connection every US microseconds
 *   -a N    `max_tokens` of plain answers (40); only what makes its answers of streams heeds it
 *   -s N    ask for streams of N events  -i US  the server is to send one every US microseconds
 *   -k KEY  client's key                 -m M   what to ask for in `model`
 *   -C PID  count this process's CPU time, as the kernel's process clock has it; may be repeated
 *   -L PHASE   leave: close each connection in that phase of its request, and say when. PHASE is
 *              head, body (the server was told to hold there), plain (a plain answer is waited
 *              for) or stream (after LEAVE_EVENTS events)
 *   -S      be stuck: read the first bytes of each stream, then nothing more
 *
 * Requests and CPU time count from the end of the warm-up to the end of the measurement; what is
 * under way then is still waited for, so that a failure at the end is seen.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shared.h"

#define MAX_CLOCKS 64
#define MAX_ERRORS 100
#define LAST_WAIT_S 30      /* how long after the measurement answers are waited for */
#define LEAVE_EVENTS 5
#define LEAVE_AFTER_NS 50000000ull /* a request that is held is left this long after it was sent */
#define LINE_BYTES 160      /* of an event line only the beginning matters */

/* Durations in ns by powers of two, each cut into PARTS: a quantile is exact to 1/PARTS. */
#define PARTS 64
struct histogram {
  uint64_t count, sum, buckets[64 * PARTS];
};
static struct histogram latency, delay, first_event;

enum state { CLOSED, CONNECTING, HEAD, BODY };
enum framing { SIZE, DATA, AFTER_DATA, TRAILER };

struct connection {
  int fd;
  enum state state;
  bool chunked, close_after, complete, broken;
  enum framing framing;
  int status, events;
  long user;
  uint64_t begun;
  size_t sent, left;            /* left: of the body, or of the chunk */
  size_t number_length, line_length, head_length;
  char number[32], line[LINE_BYTES], head[4096];
};

static struct {
  int port, connections;
  long requests, prompt_bytes, answer_tokens, events, interval_us, ramp_us;
  double warmup_s, measure_s;
  const char *key, *model, *leave;
  bool stuck;
} want = {.connections = 1, .prompt_bytes = 1024, .answer_tokens = 40, .events = -1,
          .measure_s = 10, .key = "sk-bench", .model = "fake-model"};

static struct {
  uint64_t at, requests, events;
  double cpu_s[MAX_CLOCKS];
} window_start, window_end;

static clockid_t clocks[MAX_CLOCKS];
static int clock_count;
static struct connection *all;
static int epoll_fd, opened, living, stuck;
static char *request;
static size_t request_length, user_at; /* where in the request its eight-digit number stands */
static long started, finished, left_count;
static uint64_t requests_done, events_seen, started_at;
static bool measuring, over;
static struct { long user; uint64_t at; } *left_log;
static long errors;
static char first_error[160];

/* ---- figures ------------------------------------------------------------------------------ */

static void record(struct histogram *h, uint64_t value) {
  unsigned bucket = (unsigned)value;
  if (value >= PARTS) {
    int power = 63 - __builtin_clzll(value);
    bucket = (unsigned)(power - 5) * PARTS + ((value >> (power - 6)) & (PARTS - 1));
  }
  h->count++;
  h->sum += value;
  h->buckets[bucket]++;
}

static double quantile_us(const struct histogram *h, double q) {
  uint64_t wanted = (uint64_t)(q * (double)h->count), seen = 0;
  for (unsigned i = 0; i < 64 * PARTS; i++) {
    seen += h->buckets[i];
    if (seen <= wanted) continue;
    if (i < PARTS) return i / 1e3;
    int power = (int)(i / PARTS) + 5;
    return (double)((1ull << power) + ((uint64_t)(i % PARTS) << (power - 6))) / 1e3;
  }
  return 0;
}

static void print_histogram(const char *name, const struct histogram *h) {
  printf("\"%s\":{\"n\":%llu,\"mean\":%.2f,\"p50\":%.2f,\"p99\":%.2f},", name,
         (unsigned long long)h->count, h->count ? (double)h->sum / 1e3 / (double)h->count : 0,
         quantile_us(h, .5), quantile_us(h, .99));
}

static double cpu_seconds(clockid_t clock) {
  struct timespec t;
  return clock_gettime(clock, &t) ? 0 : (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Begin or end the measurement when it is time. */
static void keep_window(void) {
  uint64_t now = now_ns();
  if (!measuring && !over && now - started_at >= (uint64_t)(want.warmup_s * 1e9)) {
    measuring = true;
    window_start.at = now;
    window_start.requests = requests_done;
    window_start.events = events_seen;
    for (int i = 0; i < clock_count; i++) window_start.cpu_s[i] = cpu_seconds(clocks[i]);
  } else if (measuring && (now - window_start.at >= (uint64_t)(want.measure_s * 1e9) ||
                           (want.requests && finished >= want.requests))) {
    measuring = false;
    over = true;
    for (int i = 0; i < clock_count; i++) window_end.cpu_s[i] = cpu_seconds(clocks[i]);
    window_end.at = now;
    window_end.requests = requests_done;
    window_end.events = events_seen;
  }
}

/* ---- one request -------------------------------------------------------------------------- */

static bool may_start(void) { return !over && (!want.requests || started < want.requests); }

static void watch(struct connection *c, int operation, uint32_t events) {
  struct epoll_event e = {.events = events, .data.ptr = c};
  epoll_ctl(epoll_fd, operation, c->fd, &e);
}

static void close_connection(struct connection *c) {
  close(c->fd);
  c->state = CLOSED;
  living--;
}

static void open_connection(struct connection *c) {
  int one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)want.port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  living++;
  c->state = CONNECTING;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
    errors++;
    snprintf(first_error, sizeof first_error, "connect: %s", strerror(errno));
    close_connection(c);
    return;
  }
  watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void fail(struct connection *c, const char *what) {
  if (!errors++) snprintf(first_error, sizeof first_error, "%s (status %d)", what, c->status);
  finished++;
  close_connection(c);
  if (errors < MAX_ERRORS && may_start()) open_connection(c);
}

static void write_request(struct connection *c) {
  while (c->sent < request_length) {
    ssize_t sent = send(c->fd, request + c->sent, request_length - c->sent, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EAGAIN) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
      else fail(c, "the connection broke while the request was sent");
      return;
    }
    c->sent += (size_t)sent;
  }
}

static void begin(struct connection *c) {
  c->user = started++;
  c->begun = now_ns();
  c->sent = c->left = c->number_length = c->line_length = c->head_length = 0;
  c->events = c->status = 0;
  c->complete = c->broken = c->chunked = c->close_after = false;
  c->framing = SIZE;
  c->state = HEAD;
  if (want.leave) { /* short requests: sent in one piece, so the number is read in time */
    char number[16];
    snprintf(number, sizeof number, "%08ld", c->user % 100000000);
    memcpy(request + user_at, number, 8);
  }
  write_request(c);
}

static void next_request(struct connection *c) {
  if (c->close_after) {
    close_connection(c);
    if (may_start()) open_connection(c);
  } else if (may_start()) {
    begin(c);
  } else {
    close_connection(c);
  }
}

static void answered(struct connection *c) {
  if (c->status != 200) {
    fail(c, "not answered with 200");
    return;
  }
  if (c->broken || (want.events >= 0 && c->events != want.events)) {
    fail(c, "the answer was not whole");
    return;
  }
  finished++;
  requests_done++;
  if (measuring && c->begun >= window_start.at) record(&latency, now_ns() - c->begun);
  next_request(c);
}

static void leave(struct connection *c) {
  left_log[left_count].user = c->user;
  left_log[left_count++].at = now_ns();
  finished++;
  requests_done++;
  close_connection(c);
  if (may_start()) open_connection(c);
}

static void get_stuck(struct connection *c) {
  stuck++;
  watch(c, EPOLL_CTL_MOD, 0);
}

/* ---- answers ------------------------------------------------------------------------------ */

static void take_line(struct connection *c) {
  static const char prefix[] = EVENT_PREFIX, failed[] = "data: {\"error\"";
  size_t length = sizeof prefix - 1;
  if (c->line_length > length && !memcmp(c->line, prefix, length)) {
    uint64_t now = now_ns(), sent_at = strtoull(c->line + length, NULL, 10);
    c->events++;
    events_seen++;
    if (measuring && c->events == 1) record(&first_event, now - c->begun);
    if (measuring && now > sent_at) record(&delay, now - sent_at);
  } else if (c->line_length >= sizeof failed - 1 && !memcmp(c->line, failed, sizeof failed - 1)) {
    c->broken = true;
  }
  c->line_length = 0;
}

static void take_body(struct connection *c, const char *bytes, size_t length) {
  if (want.events < 0) return;
  const char *end = bytes + length;
  while (bytes < end) {
    const char *newline = memchr(bytes, '\n', (size_t)(end - bytes));
    size_t part = (size_t)((newline ? newline : end) - bytes);
    size_t room = LINE_BYTES - 1 - c->line_length, kept = part < room ? part : room;
    memcpy(c->line + c->line_length, bytes, kept);
    c->line_length += kept;
    c->line[c->line_length] = 0;
    if (newline) take_line(c);
    bytes += part + (newline != NULL);
  }
}

static void take_chunks(struct connection *c, const char *bytes, size_t length) {
  const char *end = bytes + length;
  while (bytes < end && !c->complete) {
    if (c->framing == DATA) {
      size_t part = (size_t)(end - bytes);
      if (part > c->left) part = c->left;
      take_body(c, bytes, part);
      bytes += part;
      c->left -= part;
      if (!c->left) c->framing = AFTER_DATA;
      continue;
    }
    char next = *bytes++;
    if (next != '\n') {
      if (next != '\r' && c->number_length < sizeof c->number - 1)
        c->number[c->number_length++] = next;
      continue;
    }
    c->number[c->number_length] = 0;
    bool empty = !c->number_length;
    c->number_length = 0;
    if (c->framing == AFTER_DATA) {
      c->framing = SIZE;
    } else if (c->framing == SIZE) {
      c->left = strtoul(c->number, NULL, 16);
      c->framing = c->left ? DATA : TRAILER;
    } else if (empty) {
      c->complete = true;
    }
  }
}

/* Take what belongs to the head; returns how many bytes that were. */
static size_t take_head(struct connection *c, const char *bytes, size_t length) {
  size_t before = c->head_length, room = sizeof c->head - 1 - before;
  size_t kept = length < room ? length : room;
  memcpy(c->head + before, bytes, kept);
  c->head_length += kept;
  c->head[c->head_length] = 0;
  char *end = memmem(c->head, c->head_length, "\r\n\r\n", 4);
  if (!end) return length;
  size_t head_length = (size_t)(end + 4 - c->head);
  c->status = atoi(c->head + 9);
  const char *value = header_value(c->head, head_length, "Transfer-Encoding");
  c->chunked = value && !strncasecmp(value, "chunked", 7);
  value = header_value(c->head, head_length, "Content-Length");
  c->left = value ? strtoul(value, NULL, 10) : 0;
  if (!value && !c->chunked) c->broken = true; /* nothing here answers without a length */
  value = header_value(c->head, head_length, "Connection");
  c->close_after = value && !strncasecmp(value, "close", 5);
  c->state = BODY;
  return head_length - before;
}

static void read_answer(struct connection *c) {
  static char buffer[256 * 1024];
  ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    fail(c, got ? "the connection broke" : "the connection was closed before the end");
    return;
  }
  const char *bytes = buffer;
  size_t length = (size_t)got;
  if (c->state == HEAD) {
    size_t taken = take_head(c, bytes, length);
    bytes += taken;
    length -= taken;
    if (c->state == HEAD) return;
  }
  if (c->chunked) {
    take_chunks(c, bytes, length);
  } else {
    size_t part = length < c->left ? length : c->left;
    take_body(c, bytes, part);
    c->left -= part;
    c->complete = !c->left;
  }
  if (want.stuck) get_stuck(c);
  else if (want.leave && !strcmp(want.leave, "stream") && c->events >= LEAVE_EVENTS) leave(c);
  else if (c->complete) answered(c);
}

static void handle_event(struct connection *c, uint32_t events) {
  if (c->state == CLOSED) return;
  if (want.stuck && !(events & (EPOLLIN | EPOLLOUT))) return;
  if (c->state == CONNECTING) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
      fail(c, strerror(error));
      return;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    if (may_start()) begin(c);
    else close_connection(c);
    return;
  }
  if (events & EPOLLOUT) {
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    write_request(c);
  }
  if (c->state != CLOSED && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) read_answer(c);
}

/* ---- the loop ----------------------------------------------------------------------------- */

static void build_request(void) {
  char *body = malloc((size_t)want.prompt_bytes + 1024);
  char *prompt = malloc((size_t)want.prompt_bytes + 1);
  static const char words[] = "Lorem ipsum dolor sit amet, consectetur adipiscing elit. ";
  for (long i = 0; i < want.prompt_bytes; i++) prompt[i] = words[i % (long)(sizeof words - 1)];
  prompt[want.prompt_bytes] = 0;
  char hold[40] = "";
  if (want.leave && (!strcmp(want.leave, HOLD_HEAD) || !strcmp(want.leave, HOLD_BODY)))
    snprintf(hold, sizeof hold, ",\"bench_hold\":\"%s\"", want.leave);
  int length = sprintf(body,
      "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":"
      "\"You are a helpful assistant.\"},{\"role\":\"user\",\"content\":\"%s\"}],"
      "\"temperature\":0.7,\"max_tokens\":%ld,\"seed\":%ld,\"user\":\"00000000\"%s,\"stream\":%s}",
      want.model, prompt, want.events >= 0 ? want.events : want.answer_tokens, want.interval_us, hold,
      want.events >= 0 ? "true" : "false");
  request = malloc((size_t)length + 1024);
  request_length = (size_t)sprintf(request,
      "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
      "Content-Type: application/json\r\nAccept: application/json\r\n"
      "User-Agent: OpenAI/Python 1.99\r\nContent-Length: %d\r\n\r\n",
      want.port, want.key, length);
  memcpy(request + request_length, body, (size_t)length);
  request_length += (size_t)length;
  char *user = memmem(request, request_length, "\"user\":\"0", 9);
  user_at = (size_t)(user + 8 - request);
  free(body);
  free(prompt);
}

static void leave_those_held(void) {
  uint64_t now = now_ns();
  for (int i = 0; i < opened; i++) {
    struct connection *c = &all[i];
    bool waits = (c->state == HEAD || c->state == BODY) && c->sent == request_length;
    if (waits && now - c->begun >= LEAVE_AFTER_NS) leave(c);
  }
}

static bool finished_all(void) {
  if (errors >= MAX_ERRORS) return true;
  if (want.stuck) return over;
  if (want.requests && finished >= want.requests) return over;
  return over && (!living || now_ns() - window_end.at > LAST_WAIT_S * 1000000000ull);
}

static void run(void) {
  struct epoll_event events[512];
  uint64_t next_open = started_at = now_ns();
  while (keep_window(), !finished_all()) {
    while (opened < want.connections && !over && now_ns() >= next_open) {
      open_connection(&all[opened++]);
      next_open += (uint64_t)want.ramp_us * 1000;
    }
    bool timed = opened < want.connections || want.leave;
    int count = epoll_wait(epoll_fd, events, 512, timed ? 1 : 20);
    for (int i = 0; i < count; i++) handle_event(events[i].data.ptr, events[i].events);
    if (want.leave && strcmp(want.leave, "stream")) leave_those_held();
  }
}

static void print_result(void) {
  double seconds = (double)(window_end.at - window_start.at) / 1e9;
  long unfinished = want.stuck ? 0 : started - finished;
  printf("{\"started\":%ld,\"errors\":%ld,\"first_error\":\"%s\",\"stuck\":%d,\"seconds\":%.4f,"
         "\"requests\":%llu,\"events\":%llu,", started, errors + unfinished,
         errors ? first_error : unfinished ? "never answered" : "", stuck, seconds,
         (unsigned long long)(window_end.requests - window_start.requests),
         (unsigned long long)(window_end.events - window_start.events));
  print_histogram("latency_us", &latency);
  print_histogram("delay_us", &delay);
  print_histogram("first_event_us", &first_event);
  printf("\"left\":[");
  for (long i = 0; i < left_count; i++)
    printf("%s[%ld,%llu]", i ? "," : "", left_log[i].user, (unsigned long long)left_log[i].at);
  printf("],\"cpu_s\":[");
  for (int i = 0; i < clock_count; i++)
    printf("%s%.9f", i ? "," : "", window_end.cpu_s[i] - window_start.cpu_s[i]);
  printf("]}\n");
}

static void add_clock(pid_t pid) {
  clockid_t clock;
  if (clock_count == MAX_CLOCKS || clock_getcpuclockid(pid, &clock)) {
    fprintf(stderr, "loadgen: no CPU clock of process %d\n", (int)pid);
    exit(2);
  }
  clocks[clock_count++] = clock;
}

int main(int argc, char **argv) {
  int option;
  while ((option = getopt(argc, argv, "p:c:n:w:t:b:a:r:s:i:k:m:C:L:S")) > 0) {
    switch (option) {
      case 'p': want.port = atoi(optarg); break;
      case 'c': want.connections = atoi(optarg); break;
      case 'n': want.requests = atol(optarg); break;
      case 'w': want.warmup_s = atof(optarg); break;
      case 't': want.measure_s = atof(optarg); break;
      case 'b': want.prompt_bytes = atol(optarg); break;
      case 'a': want.answer_tokens = atol(optarg); break;
      case 'r': want.ramp_us = atol(optarg); break;
      case 's': want.events = atol(optarg); break;
      case 'i': want.interval_us = atol(optarg); break;
      case 'k': want.key = optarg; break;
      case 'm': want.model = optarg; break;
      case 'C': add_clock(atoi(optarg)); break;
      case 'L': want.leave = optarg; break;
      case 'S': want.stuck = true; break;
      default: return 2;
    }
  }
  build_request();
  all = calloc((size_t)want.connections, sizeof *all);
  left_log = calloc((size_t)(want.leave ? want.requests + want.connections : 1), sizeof *left_log);
  epoll_fd = epoll_create1(0);
  run();
  print_result();
  return 0;
}
