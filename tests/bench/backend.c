/* A fake llama-server for load tests: one process, one epoll loop, loopback or a UNIX socket only.
 *
 *   backend --port PORT                  listens on 127.0.0.1:PORT
 *   backend --host PATH.sock ...         listens on that UNIX socket, as llama-server does
 *
 * Every other option of llama-server is accepted and ignored, so that rolemesh-llama can start it.
 *
 * POST anything:
 *   "stream": true   server-sent events: a role event, `max_tokens` content events, an event with
 *                    the finish reason, [DONE]. One content event every `seed` microseconds, the
 *                    first at once; 0: as fast as the socket takes them, each by
 *                    a send() of its own, as llama-server does
 *   otherwise        about 600 bytes of JSON, after `seed` microseconds.
 *   "bench_hold"     see shared.h: the request is never answered, only its end is waited for.
 * The parameters are standard fields where possible, so that any proxy passes them on.
 *
 * GET /stats   counters          GET /reset   the same, and the counters begin anew
 * GET /closed  one line "USER NANOSECONDS" for each request whose connection ended before its
 *              answer did: its "user" field and the CLOCK_MONOTONIC time at which that was seen
 * any other GET: 200
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "shared.h"

#define MAX_HEAD (64 * 1024)
#define MAX_CLOSED 100000
#define TAIL 1024 /* the parameters are expected in the last bytes of a body, and looked for first */

static struct {
  uint64_t requests, completed, aborted, events;
  uint64_t active, peak_active; /* requests whose answer is not complete */
} stats;

static struct { long user; uint64_t at; } closed_log[MAX_CLOSED];
static size_t closed_count;

enum answering { IDLE, DELAYED, STREAMING, HELD };

struct connection {
  int fd;
  enum answering answering;
  bool wants_write, close_after, role_sent;
  char *in, *out;
  size_t in_length, in_size, out_length, out_sent, out_size;
  long events_left, user;
  uint64_t interval, due;
  int heap_index;                      /* -1: not in the heap */
  struct connection *previous, *next;  /* in the ring of those that send as fast as they can */
};

static int epoll_fd, listener;
static struct connection **heap; /* by due time, the earliest first */
static int heap_count, heap_size;
static struct connection ring;   /* its own `next` and `previous` are the ends */

static const char JSON_BODY[] =
    "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion\","
    "\"created\":1750000000,\"model\":\"fake-model\",\"system_fingerprint\":\"b0000-fake\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\""
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog. "
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog.\"},"
    "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":128,"
    "\"completion_tokens\":40,\"total_tokens\":168,\"prompt_tokens_details\":{\"cached_tokens\":0}}}";

#define EVENT_REST                                                                      \
  "\"created\":1750000000,\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\","          \
  "\"model\":\"fake-model\",\"system_fingerprint\":\"b0000-fake\","                       \
  "\"object\":\"chat.completion.chunk\""
static const char ROLE_EVENT[] =
    "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\","
    "\"content\":null}}]," EVENT_REST "}\n\n";
static const char LAST_EVENTS[] =
    "data: {\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"delta\":{}}]," EVENT_REST
    ",\"usage\":{\"completion_tokens\":40,\"prompt_tokens\":128,\"total_tokens\":168}}\n\n"
    "data: [DONE]\n\n";

/* ---- who is to send when ------------------------------------------------------------------ */

static void heap_swap(int a, int b) {
  struct connection *kept = heap[a];
  heap[a] = heap[b];
  heap[b] = kept;
  heap[a]->heap_index = a;
  heap[b]->heap_index = b;
}

static void heap_settle(int at) {
  while (at && heap[(at - 1) / 2]->due > heap[at]->due) {
    heap_swap(at, (at - 1) / 2);
    at = (at - 1) / 2;
  }
  for (;;) {
    int first = at, left = 2 * at + 1;
    for (int child = left; child <= left + 1; child++)
      if (child < heap_count && heap[child]->due < heap[first]->due) first = child;
    if (first == at) return;
    heap_swap(at, first);
    at = first;
  }
}

static void wait_until_due(struct connection *c) {
  if (c->heap_index < 0) {
    if (heap_count == heap_size) {
      heap_size = heap_size ? heap_size * 2 : 256;
      heap = realloc(heap, (size_t)heap_size * sizeof *heap);
    }
    c->heap_index = heap_count;
    heap[heap_count++] = c;
  }
  heap_settle(c->heap_index);
}

static void send_in_turn(struct connection *c) {
  c->previous = ring.previous;
  c->next = &ring;
  c->previous->next = ring.previous = c;
}

static void rest(struct connection *c) { /* neither due nor in turn */
  int at = c->heap_index;
  if (at >= 0) {
    heap_count--;
    if (at != heap_count) {
      heap[at] = heap[heap_count];
      heap[at]->heap_index = at;
      heap_settle(at);
    }
    c->heap_index = -1;
  }
  if (c->next) {
    c->previous->next = c->next;
    c->next->previous = c->previous;
    c->next = c->previous = NULL;
  }
}

static void go_on(struct connection *c) {
  if (c->answering == DELAYED || (c->answering == STREAMING && c->interval)) wait_until_due(c);
  else if (c->answering == STREAMING && !c->next) send_in_turn(c);
}

/* ---- one connection ----------------------------------------------------------------------- */

static void answer_ended(struct connection *c) {
  c->answering = IDLE;
  stats.active--;
  rest(c);
}

static void end_connection(struct connection *c) {
  if (c->answering != IDLE) {
    if (c->user >= 0 && closed_count < MAX_CLOSED) {
      closed_log[closed_count].user = c->user;
      closed_log[closed_count++].at = now_ns();
    }
    stats.aborted++;
    answer_ended(c);
  }
  close(c->fd);
  free(c->in);
  free(c->out);
  free(c);
}

static void want_write(struct connection *c, bool wanted) {
  if (c->wants_write == wanted) return;
  c->wants_write = wanted;
  struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (wanted ? EPOLLOUT : 0u), .data.ptr = c};
  epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

/* Send, or keep what the socket does not take. False: the connection is broken. */
static bool put(struct connection *c, const char *text, size_t length) {
  if (c->out_length == c->out_sent) {
    c->out_length = c->out_sent = 0;
    ssize_t sent = send(c->fd, text, length, MSG_NOSIGNAL);
    if (sent == (ssize_t)length) return true;
    if (sent < 0 && errno != EAGAIN) return false;
    if (sent > 0) {
      text += sent;
      length -= (size_t)sent;
    }
  }
  if (c->out_length + length > c->out_size) {
    c->out_size = (c->out_length + length) * 2;
    c->out = realloc(c->out, c->out_size);
  }
  memcpy(c->out + c->out_length, text, length);
  c->out_length += length;
  want_write(c, true);
  return true;
}

static bool flush_kept(struct connection *c) {
  while (c->out_sent < c->out_length) {
    ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN;
    c->out_sent += (size_t)sent;
  }
  c->out_length = c->out_sent = 0;
  want_write(c, false);
  return true;
}

static bool put_json(struct connection *c, const char *body, size_t length) {
  char head[256];
  int n = snprintf(head, sizeof head,
                   "HTTP/1.1 200 OK\r\nServer: fake\r\n"
                   "Content-Type: application/json; charset=utf-8\r\nContent-Length: %zu\r\n"
                   "Access-Control-Allow-Origin: *\r\n\r\n", length);
  if (length > 4096) return put(c, head, (size_t)n) && put(c, body, length);
  char whole[sizeof head + 4096];
  memcpy(whole, head, (size_t)n);
  memcpy(whole + n, body, length);
  return put(c, whole, (size_t)n + length);
}

/* Send an event as one chunk; with `last` the end of the body too. */
static bool put_event(struct connection *c, const char *event, size_t length, bool last) {
  char chunk[1024];
  int n = snprintf(chunk, sizeof chunk, "%zx\r\n%.*s\r\n%s", length, (int)length, event,
                   last ? "0\r\n\r\n" : "");
  return put(c, chunk, (size_t)n);
}

/* Send what is next of an answer under way; ends the answer with its last part. */
static bool step(struct connection *c) {
  if (c->answering == DELAYED) {
    stats.completed++;
    answer_ended(c);
    return put_json(c, JSON_BODY, sizeof JSON_BODY - 1);
  }
  if (!c->role_sent) {
    c->role_sent = true;
    return put_event(c, ROLE_EVENT, sizeof ROLE_EVENT - 1, false);
  }
  if (c->events_left > 0) {
    char event[512];
    c->events_left--;
    stats.events++;
    int n = snprintf(event, sizeof event, EVENT_PREFIX "%llu \"}}]," EVENT_REST "}\n\n",
                     (unsigned long long)now_ns());
    return put_event(c, event, (size_t)n, false);
  }
  stats.completed++;
  answer_ended(c);
  return put_event(c, LAST_EVENTS, sizeof LAST_EVENTS - 1, true);
}

/* ---- requests ----------------------------------------------------------------------------- */

static const char *find_value(const char *body, size_t length, const char *key) {
  const char *at = NULL;
  if (length > TAIL) at = memmem(body + length - TAIL, TAIL, key, strlen(key));
  if (!at) at = memmem(body, length, key, strlen(key));
  if (!at) return NULL;
  at += strlen(key);
  while (at < body + length && (*at == ' ' || *at == ':' || *at == '"')) at++;
  return at;
}

static long number_of(const char *body, size_t length, const char *key, long otherwise) {
  const char *at = find_value(body, length, key);
  return at && *at >= '0' && *at <= '9' ? strtol(at, NULL, 10) : otherwise;
}

static bool begin_stream(struct connection *c) {
  static const char head[] =
      "HTTP/1.1 200 OK\r\nServer: fake\r\nContent-Type: text/event-stream\r\n"
      "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
  if (!put(c, head, sizeof head - 1)) return false;
  if (c->answering == HELD) return true;
  if (!step(c)) return false;                              /* the role */
  if (c->interval && c->events_left && !step(c)) return false; /* the first token */
  c->due = now_ns() + c->interval;
  go_on(c);
  return true;
}

static bool answer_post(struct connection *c, const char *body, size_t length) {
  stats.requests++;
  long interval_us = number_of(body, length, "\"seed\"", 0);
  const char *stream = find_value(body, length, "\"stream\"");
  const char *hold = find_value(body, length, "\"bench_hold\"");
  c->user = number_of(body, length, "\"user\"", -1);
  c->interval = (uint64_t)interval_us * 1000;
  c->events_left = number_of(body, length, "\"max_tokens\"", 16);
  c->role_sent = false;
  bool streaming = stream && *stream == 't';
  if (!streaming && !interval_us && !hold) {
    stats.completed++;
    return put_json(c, JSON_BODY, sizeof JSON_BODY - 1);
  }
  if (++stats.active > stats.peak_active) stats.peak_active = stats.active;
  c->answering = hold ? HELD : streaming ? STREAMING : DELAYED;
  if (hold && !strncmp(hold, HOLD_HEAD, strlen(HOLD_HEAD))) return true;
  if (streaming) return begin_stream(c);
  c->due = now_ns() + c->interval;
  wait_until_due(c);
  return true;
}

static bool answer_stats(struct connection *c) {
  char text[512];
  int n = snprintf(text, sizeof text,
                   "{\"requests\":%llu,\"completed\":%llu,\"aborted\":%llu,\"events\":%llu,"
                   "\"active\":%llu,\"peak_active\":%llu}",
                   (unsigned long long)stats.requests, (unsigned long long)stats.completed,
                   (unsigned long long)stats.aborted, (unsigned long long)stats.events,
                   (unsigned long long)stats.active, (unsigned long long)stats.peak_active);
  return put_json(c, text, (size_t)n);
}

static bool answer_closed(struct connection *c) {
  char *text = malloc(closed_count * 48 + 1);
  size_t n = 0;
  for (size_t i = 0; i < closed_count; i++)
    n += (size_t)sprintf(text + n, "%ld %llu\n", closed_log[i].user,
                         (unsigned long long)closed_log[i].at);
  bool sent = put_json(c, text, n);
  free(text);
  return sent;
}

static bool answer_get(struct connection *c, const char *path) {
  static const char models[] =
      "{\"object\":\"list\",\"data\":[{\"id\":\"fake-model\",\"object\":\"model\","
      "\"created\":1750000000,\"owned_by\":\"fake\"}]}";
  static const char fine[] =
      "{\"status\":\"ok\",\"model_path\":\"fake-model\",\"served_model_name\":\"fake-model\","
      "\"is_generation\":true}";
  if (!strncmp(path, "/stats", 6)) return answer_stats(c);
  if (!strncmp(path, "/closed", 7)) return answer_closed(c);
  if (!strncmp(path, "/reset", 6)) {
    bool sent = answer_stats(c);
    uint64_t active = stats.active;
    memset(&stats, 0, sizeof stats);
    stats.active = stats.peak_active = active;
    closed_count = 0;
    return sent;
  }
  if (!strncmp(path, "/v1/models", 10)) return put_json(c, models, sizeof models - 1);
  return put_json(c, fine, sizeof fine - 1);
}

/* Undo chunked framing in place. 0: not complete; otherwise the bytes it took, framing included. */
static size_t dechunk(char *body, size_t length, size_t *body_length) {
  char *at = body, *end = body + length;
  for (;;) { /* complete? */
    char *line_end = memmem(at, (size_t)(end - at), "\r\n", 2);
    if (!line_end) return 0;
    size_t size = strtoul(at, NULL, 16);
    at = line_end + 2;
    if ((size_t)(end - at) < size + 2) return 0;
    at += size + 2;
    if (!size) break;
  }
  size_t taken = (size_t)(at - body);
  char *to = body;
  for (at = body;;) {
    size_t size = strtoul(at, NULL, 16);
    if (!size) break;
    at = (char *)memmem(at, (size_t)(end - at), "\r\n", 2) + 2;
    memmove(to, at, size);
    to += size;
    at += size + 2;
  }
  *body_length = (size_t)(to - body);
  return taken;
}

static bool answer_one(struct connection *c, size_t head_length, size_t total, size_t body_length) {
  const char *value = header_value(c->in, head_length, "Connection");
  c->close_after = value && !strncasecmp(value, "close", 5);
  bool sent;
  if (c->in[0] == 'P') {
    sent = answer_post(c, c->in + head_length, body_length);
  } else {
    const char *space = memchr(c->in, ' ', head_length);
    sent = answer_get(c, space ? space + 1 : "/");
  }
  c->in_length -= total;
  if (c->in_length) memmove(c->in, c->in + total, c->in_length);
  return sent;
}

static bool all_said(const struct connection *c) {
  return c->answering == IDLE && c->close_after && c->out_length == c->out_sent;
}

/* Answer what has arrived whole. False: the connection is over. */
static bool take_requests(struct connection *c) {
  while (c->in_length && c->answering == IDLE) {
    char *head_end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
    if (!head_end) return c->in_length <= MAX_HEAD;
    size_t head_length = (size_t)(head_end + 4 - c->in), total = head_length, body_length = 0;
    const char *value = header_value(c->in, head_length, "Content-Length");
    if (value) {
      body_length = strtoul(value, NULL, 10);
      total += body_length;
      if (c->in_length < total) return true;
    } else if ((value = header_value(c->in, head_length, "Transfer-Encoding")) &&
               !strncasecmp(value, "chunked", 7)) {
      size_t taken = dechunk(c->in + head_length, c->in_length - head_length, &body_length);
      if (!taken) return true;
      total += taken;
    }
    if (!answer_one(c, head_length, total, body_length)) return false;
    if (all_said(c)) return false;
  }
  return true;
}

static bool read_some(struct connection *c) {
  if (c->in_size - c->in_length < 4096) {
    c->in_size = c->in_size ? c->in_size * 2 : 8192;
    c->in = realloc(c->in, c->in_size);
  }
  ssize_t got = recv(c->fd, c->in + c->in_length, c->in_size - c->in_length, 0);
  if (got == 0 || (got < 0 && errno != EAGAIN)) return false;
  if (got < 0) return true;
  c->in_length += (size_t)got;
  return take_requests(c);
}

/* An answer's next part is due. False: the connection is over. */
static bool advance(struct connection *c) {
  if (!step(c)) return false;
  if (c->answering == IDLE) return all_said(c) ? false : take_requests(c);
  if (c->out_length > c->out_sent) {
    rest(c); /* the reader is behind: on when the socket takes more */
  } else {
    c->due += c->interval;
    go_on(c);
  }
  return true;
}

/* ---- the loop ----------------------------------------------------------------------------- */

static void accept_some(void) {
  for (int i = 0; i < 64; i++) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->heap_index = -1;
    c->user = -1;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
  }
}

static void handle_event(struct connection *c, uint32_t events) {
  bool alive = !(events & (EPOLLERR | EPOLLHUP));
  if (alive && (events & (EPOLLIN | EPOLLRDHUP))) alive = read_some(c);
  if (alive && (events & EPOLLOUT)) {
    alive = flush_kept(c);
    if (alive && c->out_length == c->out_sent) {
      if (all_said(c)) alive = false;
      else go_on(c);
    }
  }
  if (!alive) end_connection(c);
}

static void advance_all(void) {
  uint64_t now = now_ns();
  while (heap_count && heap[0]->due <= now) {
    struct connection *c = heap[0];
    if (!advance(c)) end_connection(c);
  }
  struct connection *last = ring.previous;
  for (struct connection *c = ring.next, *next; c != &ring; c = next) {
    bool was_last = c == last;
    next = c->next;
    if (!advance(c)) end_connection(c);
    if (was_last) return;
  }
}

static void serve(void) {
  struct epoll_event events[512];
  for (;;) {
    struct timespec pause = {0}, *timeout = NULL;
    if (ring.next != &ring) {
      timeout = &pause;
    } else if (heap_count) {
      uint64_t now = now_ns(), left = heap[0]->due > now ? heap[0]->due - now : 0;
      pause.tv_sec = (time_t)(left / 1000000000ull);
      pause.tv_nsec = (long)(left % 1000000000ull);
      timeout = &pause;
    }
    int count = epoll_pwait2(epoll_fd, events, 512, timeout, NULL);
    for (int i = 0; i < count; i++) {
      if (events[i].data.ptr) handle_event(events[i].data.ptr, events[i].events);
      else accept_some();
    }
    advance_all();
  }
}

static int listen_tcp(int port) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  return bind(fd, (struct sockaddr *)&address, sizeof address) ? -1 : fd;
}

static int listen_unix(const char *path) {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) return -1;
  strcpy(address.sun_path, path);
  return bind(fd, (struct sockaddr *)&address, sizeof address) ? -1 : fd;
}

int main(int argc, char **argv) {
  const char *path = NULL;
  int port = 0;
  // It has no devices to name.
  if (argc > 1 && !strcmp(argv[argc - 1], "--list-devices")) return 0;
  /* What it is asked once about itself: it knows no options, and says so. */
  if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "--version"))) return 1;
  for (int i = 1; i + 1 < argc; i++) {
    size_t length = strlen(argv[i + 1]);
    if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--host") && length > 5 && !strcmp(argv[i + 1] + length - 5, ".sock"))
      path = argv[i + 1];
  }
  signal(SIGPIPE, SIG_IGN);
  listener = path ? listen_unix(path) : listen_tcp(port);
  if (listener < 0 || listen(listener, 4096)) {
    perror("backend: cannot listen");
    return 1;
  }
  ring.next = ring.previous = &ring;
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
  serve();
}
