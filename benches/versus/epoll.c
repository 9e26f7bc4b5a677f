/* An echo on bare epoll: edge-triggered, reads until nothing is left, one write for each read, and nothing else. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[65536];

static void watch(int poll, int fd, unsigned how) {
    struct epoll_event event = {.events = EPOLLIN | how, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) != 0) close(fd);
}

/* Whoever does not read holds up all others: it is a yardstick and no server. */
static int write_all(int fd, const char *bytes, ssize_t size) {
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);
        struct pollfd ready = {.fd = fd, .events = POLLOUT};
        if (n < 0 && (errno != EAGAIN || poll(&ready, 1, 10000) <= 0)) return -1;
        if (n > 0) bytes += n, size -= n;
    }
    return 0;
}

static void echo(int fd) {
    for (;;) {
        ssize_t size = read(fd, buffer, sizeof buffer);
        if (size < 0 && errno == EAGAIN) return;
        if (size <= 0 || write_all(fd, buffer, size) != 0) {
            close(fd);
            return;
        }
    }
}

int main(int count, char **words) {
    char *colon = count > 1 ? strrchr(words[1], ':') : NULL;
    struct sockaddr_in at = {.sin_family = AF_INET};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), poll = epoll_create1(0);
    if (!colon) return 2;
    *colon = 0;
    at.sin_port = htons(atoi(colon + 1));
    if (inet_pton(AF_INET, words[1], &at.sin_addr) != 1) return 2;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 1024) != 0) return 1;
    watch(poll, listener, 0);
    for (;;) {
        struct epoll_event events[1024];
        int ready = epoll_wait(poll, events, 1024, -1);
        for (int n = 0; n < ready; n++) {
            if (events[n].data.fd != listener) {
                echo(events[n].data.fd);
                continue;
            }
            int peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
            if (peer < 0) continue;
            setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            watch(poll, peer, EPOLLET);
        }
    }
}
