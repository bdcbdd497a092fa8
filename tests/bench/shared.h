/* What the fake server and the load generator must agree on, and small helpers of both. */
#ifndef ROLEMESH_BENCH_SHARED_H
#define ROLEMESH_BENCH_SHARED_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* A content event begins with this, followed by the CLOCK_MONOTONIC nanoseconds of its sending. So
 * whoever reads it on the same machine knows how long it was under way. */
#define EVENT_PREFIX \
  "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\"t"

/* Where a request with "bench_hold" is left waiting, by its value: the server says nothing at all,
 * or sends a streaming head and then nothing. */
#define HOLD_HEAD "head"
#define HOLD_BODY "body"

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Return where the value of a header field begins in a message head, NULL without that field. */
static inline const char *header_value(const char *head, size_t length, const char *name) {
  size_t name_length = strlen(name);
  const char *at = head, *end = head + length;
  while ((at = memchr(at, '\n', (size_t)(end - at))) != NULL) {
    at++;
    if ((size_t)(end - at) > name_length && !strncasecmp(at, name, name_length) &&
        at[name_length] == ':') {
      at += name_length + 1;
      while (*at == ' ') at++;
      return at;
    }
  }
  return NULL;
}

#endif
