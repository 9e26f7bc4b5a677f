/* An echo on libuv, as its guide writes it: a buffer for each read, a request for each write. */
#include <stdlib.h>
#include <string.h>
#include <uv.h>

typedef struct {
    uv_write_t request;
    uv_buf_t bytes;
} writing;

static void allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *bytes) {
    (void)handle;
    *bytes = uv_buf_init(malloc(suggested), suggested);
}

static void closed(uv_handle_t *handle) { free(handle); }

static void written(uv_write_t *request, int status) {
    (void)status;
    free(((writing *)request)->bytes.base);
    free(request);
}

static void arrived(uv_stream_t *peer, ssize_t size, const uv_buf_t *bytes) {
    if (size > 0) {
        writing *echo = malloc(sizeof *echo);
        echo->bytes = uv_buf_init(bytes->base, size);
        uv_write(&echo->request, peer, &echo->bytes, 1, written);
        return;
    }
    if (size < 0) uv_close((uv_handle_t *)peer, closed);
    free(bytes->base);
}

static void newcomer(uv_stream_t *listener, int status) {
    uv_tcp_t *peer = malloc(sizeof *peer);
    uv_tcp_init(listener->loop, peer);
    if (status != 0 || uv_accept(listener, (uv_stream_t *)peer) != 0) {
        uv_close((uv_handle_t *)peer, closed);
        return;
    }
    uv_tcp_nodelay(peer, 1);
    uv_read_start((uv_stream_t *)peer, allocate, arrived);
}

int main(int count, char **words) {
    char *colon = count > 1 ? strrchr(words[1], ':') : NULL;
    struct sockaddr_in at;
    uv_tcp_t listener;
    if (!colon) return 2;
    *colon = 0;
    if (uv_ip4_addr(words[1], atoi(colon + 1), &at) != 0) return 2;
    uv_tcp_init(uv_default_loop(), &listener);
    if (uv_tcp_bind(&listener, (const struct sockaddr *)&at, 0) != 0) return 1;
    if (uv_listen((uv_stream_t *)&listener, 1024, newcomer) != 0) return 1;
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
