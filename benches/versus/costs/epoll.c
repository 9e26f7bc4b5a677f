/* The least that an echo server can be: one loop over epoll, level-triggered, nothing bounded and nothing queued. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[65536];

static void watch(int poll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) != 0) close(fd);
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
    watch(poll, listener);
    for (;;) {
        struct epoll_event events[1024];
        int ready = epoll_wait(poll, events, 1024, -1);
        for (int n = 0; n < ready; n++) {
            int fd = events[n].data.fd;
            if (fd == listener) {
                int peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (peer < 0) continue;
                setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                watch(poll, peer);
                continue;
            }
            ssize_t size = read(fd, buffer, sizeof buffer);
            if (size <= 0 || write(fd, buffer, size) != size) close(fd);
        }
    }
}
