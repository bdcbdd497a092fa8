/* Stands where the journal does: takes datagrams at a socket and counts those that are the record
 * of a request, by the program that wrote them.
 *
 *   journal_sink SOCKET COUNTS       COUNTS: a file; three numbers of 8 bytes, kept up to date:
 *                                    the gateway's request records, the agent's, all datagrams
 *
 * The protocol is the journal's own: https://systemd.io/JOURNAL_NATIVE_PROTOCOL
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BATCH 64
#define RECORD_BYTES 8192
#define RECEIVE_BUFFER (8 * 1024 * 1024)

struct counts {
  uint64_t gateway, agent, datagrams;
};

static int has(const char *record, size_t length, const char *field) {
  return memmem(record, length, field, strlen(field)) != NULL;
}

static void count(volatile struct counts *counts, const char *record, size_t length) {
  counts->datagrams++;
  if (!has(record, length, "\nROLEMESH_REQUEST_ID=")) return;
  if (has(record, length, "SYSLOG_IDENTIFIER=rolemesh-gateway\n")) counts->gateway++;
  if (has(record, length, "SYSLOG_IDENTIFIER=rolemesh-node-agent\n")) counts->agent++;
}

int main(int argc, char **argv) {
  static char records[BATCH][RECORD_BYTES];
  struct mmsghdr messages[BATCH];
  struct iovec buffers[BATCH];
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int size = RECEIVE_BUFFER;
  if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path) return 2;
  int file = open(argv[2], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, sizeof(struct counts))) {
    perror("journal_sink: counts");
    return 1;
  }
  volatile struct counts *counts =
      mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  strcpy(address.sun_path, argv[1]);
  if (counts == MAP_FAILED || bind(fd, (struct sockaddr *)&address, sizeof address)) {
    perror("journal_sink: socket");
    return 1;
  }
  for (int i = 0; i < BATCH; i++) {
    buffers[i] = (struct iovec){.iov_base = records[i], .iov_len = RECORD_BYTES};
    messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &buffers[i], .msg_iovlen = 1}};
  }
  for (;;) {
    int got = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
    for (int i = 0; i < got; i++) count(counts, records[i], messages[i].msg_len);
  }
}
