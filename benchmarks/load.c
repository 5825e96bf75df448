/*
 * A load generator for inference servers: one thread, HTTP/1.1 (plain or TLS) or gRPC over HTTP/2.
 *
 * It cycles through many distinct requests, compares the numbers in every answer with the expected
 * ones and keeps every latency, so that quantiles are exact. Closed loop: each connection (HTTP) or
 * stream (gRPC) sends its next request when it has its answer. With --rate requests fall due on a
 * fixed schedule and latency counts from the due time, so a stalled server is not flattered.
 * With --upload the first gRPC connection also carries one large message after the other, and with
 * --unread a stream of so many requests whose answers it never reads.
 *
 * File of cases, little endian: u32 cases, u32 floats; then per case u32 length, that many request
 * bytes, and the expected answer as float32. An HTTP request is head and body, a gRPC request is
 * the length-prefixed message. The answer is read after a text marker, or from the body's tail.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { UPLOAD_FRAME = 16384, UPLOAD_PIECES = 8 }; /* short, so that small calls wait for few of them */
enum { MAX_IOV = 64, ARENA = 1 << 16, READ_SIZE = 1 << 16, MAX_STREAMS_NV = 16 };

typedef struct {
    const uint8_t *bytes;
    uint32_t length;
    const float *expected;
} Case;

typedef struct {
    uint8_t *bytes;
    size_t length, capacity;
} Bytes;

typedef struct Connection Connection;

typedef struct { /* one request in flight at a time */
    Connection *connection;
    const Case *request;
    uint64_t started_ns;
    size_t sent;  /* gRPC: bytes of the message handed to nghttp2 */
    Bytes answer; /* gRPC: the response message */
    int status_ok;
    const char *background; /* not measured: what it is */
} Slot;

struct Connection {
    int fd, want_write;
    SSL *tls;
    nghttp2_session *h2;
    Slot *slots;
    struct iovec queue[MAX_IOV]; /* what is still to be written */
    int queued;
    uint8_t arena[ARENA]; /* small frames, copied; payloads are referred to */
    size_t arena_used;
    Bytes input; /* HTTP/1.1: the response so far */
};

static struct {
    int port, connections, streams, tls, vary, unread;
    size_t upload;
    double seconds, warmup_s, rate, tolerance;
    const char *grpc_path, *marker, *cases;
} opt = {.connections = 1, .streams = 1, .seconds = 4, .warmup_s = 0.5, .tolerance = 1e-4};

static Case *cases;
static uint32_t case_count, float_count, next_case;
static Connection *connections;
static Slot **idle; /* with --rate: slots that wait for their due time */
static int idle_count, epoll_fd, timer_fd = -1, in_flight, stopping;
static SSL_CTX *tls_context;
static uint64_t window_start_ns, window_end_ns, next_due_ns, sequence;
static Slot upload = {.background = "upload"}, unread = {.background = "unread stream"};
static const char *const stream_path = "/inference.GRPCInferenceService/ModelStreamInfer";
static uint64_t uploads, total, errors, mismatches, kept, kept_capacity;
static float *latencies_us;
static char first_problem[256];

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + 1e-6 * (u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void *grow(void *block, size_t size) {
    block = realloc(block, size);
    if (!block) die("out of memory");
    return block;
}

static void reserve(Bytes *b, size_t extra) { /* one byte more, for a final NUL */
    if (b->length + extra + 1 <= b->capacity) return;
    b->capacity = (b->length + extra + 1) * 2;
    b->bytes = grow(b->bytes, b->capacity);
}

static void problem(uint64_t *counter, const char *what, const uint8_t *bytes, size_t length) {
    if (!(*counter)++ && !first_problem[0]) {
        int shown = snprintf(first_problem, sizeof first_problem, "%s: ", what);
        for (size_t i = 0; i < length && shown < (int)sizeof first_problem - 1; i++)
            first_problem[shown++] = bytes[i] < 32 || bytes[i] > 126 || bytes[i] == '"' || bytes[i] == '\\' ? '.' : (char)bytes[i];
        first_problem[shown] = 0;
    }
}

static void read_cases(void) {
    FILE *f = fopen(opt.cases, "rb");
    if (!f) die("%s: %s", opt.cases, strerror(errno));
    fseek(f, 0, SEEK_END);
    size_t size = (size_t)ftell(f);
    rewind(f);
    uint8_t *all = grow(NULL, size), *at = all + 8;
    if (fread(all, 1, size, f) != size || size < 8) die("%s: cannot be read", opt.cases);
    fclose(f);
    memcpy(&case_count, all, 4);
    memcpy(&float_count, all + 4, 4);
    cases = grow(NULL, case_count * sizeof *cases);
    for (uint32_t i = 0; i < case_count; i++) {
        memcpy(&cases[i].length, at, 4);
        float *expected = grow(NULL, float_count * sizeof(float));
        memcpy(expected, at + 4 + cases[i].length, float_count * sizeof(float));
        cases[i].bytes = at + 4;
        cases[i].expected = expected;
        at += 4 + cases[i].length + float_count * sizeof(float);
    }
    if (at != all + size) die("%s: length does not match its contents", opt.cases);
}

/* ---- answers ---- */

static int answer_matches(const Case *request, const uint8_t *body, size_t length) {
    const char *text = NULL;
    if (opt.marker) {
        text = memmem(body, length, opt.marker, strlen(opt.marker));
        if (!text) return 0;
        text += strlen(opt.marker);
    } else if (length < float_count * sizeof(float)) {
        return 0;
    }
    const uint8_t *tail = body + length - float_count * sizeof(float);
    for (uint32_t i = 0; i < float_count; i++) {
        float got;
        if (text) {
            char *end;
            text += strspn(text, "[], \n");
            got = strtof(text, &end);
            if (end == text) return 0;
            text = end;
        } else {
            memcpy(&got, tail + i * sizeof got, sizeof got);
        }
        float want = request->expected[i];
        if (!(fabsf(got - want) <= opt.tolerance * (1 + fabsf(want)))) return 0;
    }
    return 1;
}

static void start(Slot *slot, uint64_t started_ns);

static void finished(Slot *slot, int ok, const uint8_t *body, size_t length) {
    uint64_t now = now_ns();
    in_flight--;
    total++;
    if (!ok)
        problem(&errors, "error", body, length);
    else if (!answer_matches(slot->request, body, length))
        problem(&mismatches, "wrong answer", body, length);
    if (now >= window_start_ns && now < window_end_ns) {
        if (kept == kept_capacity)
            latencies_us = grow(latencies_us, (kept_capacity = kept_capacity * 2 + 65536) * sizeof(float));
        latencies_us[kept++] = (float)(now - slot->started_ns) / 1000;
    }
    if (opt.rate > 0)
        idle[idle_count++] = slot;
    else if (!stopping)
        start(slot, now);
}

/* ---- writing: a queue of pieces, one writev for as many as possible ---- */

static void watch(Connection *c, int op) {
    struct epoll_event event = {.events = EPOLLIN | (c->want_write ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll_fd, op, c->fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

static void flush(Connection *c) {
    int first = 0;
    while (first < c->queued) {
        struct iovec *piece = &c->queue[first];
        ssize_t n = c->tls ? SSL_write(c->tls, piece->iov_base, (int)piece->iov_len)
                           : writev(c->fd, piece, c->queued - first);
        if (n <= 0) {
            if (!c->tls && errno != EAGAIN) die("write: %s", strerror(errno));
            break;
        }
        for (size_t left = (size_t)n; left;) {
            piece = &c->queue[first];
            size_t part = left < piece->iov_len ? left : piece->iov_len;
            piece->iov_base = (uint8_t *)piece->iov_base + part;
            piece->iov_len -= part;
            left -= part;
            if (!piece->iov_len) first++;
        }
    }
    c->queued -= first;
    memmove(c->queue, c->queue + first, (size_t)c->queued * sizeof *c->queue);
    if (!c->queued) c->arena_used = 0;
    if (c->want_write != (c->queued > 0)) {
        c->want_write = c->queued > 0;
        watch(c, EPOLL_CTL_MOD);
    }
}

static int room(Connection *c, size_t copied, int pieces) {
    if (c->queued + pieces <= MAX_IOV && c->arena_used + copied <= ARENA) return 1;
    flush(c);
    return c->queued + pieces <= MAX_IOV && c->arena_used + copied <= ARENA;
}

static void refer(Connection *c, const uint8_t *bytes, size_t length) {
    if (length) c->queue[c->queued++] = (struct iovec){(void *)bytes, length};
}

static void copy(Connection *c, const uint8_t *bytes, size_t length) {
    uint8_t *at = c->arena + c->arena_used;
    memcpy(at, bytes, length);
    c->arena_used += length;
    struct iovec *last = c->queued ? &c->queue[c->queued - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == at)
        last->iov_len += length;
    else
        refer(c, at, length);
}

/* ---- gRPC over HTTP/2 ---- */

static ssize_t h2_send(nghttp2_session *h2, const uint8_t *data, size_t length, int flags, void *user) {
    (void)h2, (void)flags;
    if (!room(user, length, 1)) return NGHTTP2_ERR_WOULDBLOCK;
    copy(user, data, length);
    return (ssize_t)length;
}

static int h2_send_data(nghttp2_session *h2, nghttp2_frame *frame, const uint8_t *head, size_t length,
                        nghttp2_data_source *source, void *user) {
    (void)h2, (void)frame;
    Slot *slot = source->ptr;
    Connection *c = user;
    if (slot == &upload && c->queued >= UPLOAD_PIECES) {
        flush(c);
        if (c->queued >= UPLOAD_PIECES) return NGHTTP2_ERR_WOULDBLOCK;
    }
    if (!room(user, 9 + (length < 1024 ? length : 0), 2)) return NGHTTP2_ERR_WOULDBLOCK;
    copy(user, head, 9);
    (length < 1024 ? copy : refer)(user, slot->request->bytes + slot->sent, length);
    slot->sent += length;
    return 0;
}

static ssize_t h2_read_message(nghttp2_session *h2, int32_t id, uint8_t *buffer, size_t size,
                               uint32_t *flags, nghttp2_data_source *source, void *user) {
    (void)h2, (void)id, (void)buffer, (void)user;
    Slot *slot = source->ptr;
    size_t left = slot->request->length - slot->sent;
    if (slot == &unread && !left) return NGHTTP2_ERR_DEFERRED; /* it stays open */
    if (slot == &unread) {
        *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
        return (ssize_t)(left < size ? left : size);
    }
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY | (left <= size ? NGHTTP2_DATA_FLAG_EOF : 0);
    return (ssize_t)(left < size ? left : size);
}

static ssize_t h2_frame_size(nghttp2_session *h2, uint8_t type, int32_t id, int32_t session_window,
                             int32_t stream_window, uint32_t max_frame, void *user) {
    (void)h2, (void)type, (void)id, (void)user;
    int32_t window = session_window < stream_window ? session_window : stream_window;
    if (opt.upload && max_frame > UPLOAD_FRAME) max_frame = UPLOAD_FRAME;
    return window < (int64_t)max_frame ? window : (int32_t)max_frame;
}

static void h2_request(Slot *slot);

static int h2_header(nghttp2_session *h2, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_length, const uint8_t *value, size_t length, uint8_t flags, void *user) {
    (void)flags, (void)user;
    if (name_length == 11 && !memcmp(name, "grpc-status", 11)) {
        Slot *slot = nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id);
        if (slot) slot->status_ok = length == 1 && *value == '0';
    } else if (name_length == 12 && !memcmp(name, "grpc-message", 12) && length) {
        Slot *slot = nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id);
        reserve(&slot->answer, length);
        memcpy(slot->answer.bytes + slot->answer.length, value, length);
        slot->answer.length += length;
    }
    return 0;
}

static int h2_data(nghttp2_session *h2, uint8_t flags, int32_t id, const uint8_t *data, size_t length, void *user) {
    (void)flags, (void)user;
    Slot *slot = nghttp2_session_get_stream_user_data(h2, id);
    if (slot == &unread) return nghttp2_session_consume_connection(h2, length);
    if (opt.unread) nghttp2_session_consume(h2, id, length);
    if (!slot) return 0;
    reserve(&slot->answer, length);
    memcpy(slot->answer.bytes + slot->answer.length, data, length);
    slot->answer.length += length;
    return 0;
}

static int h2_close(nghttp2_session *h2, int32_t id, uint32_t code, void *user) {
    (void)user;
    Slot *slot = nghttp2_session_get_stream_user_data(h2, id);
    if (slot == &upload && !code) {
        uploads++;
        h2_request(slot);
    } else if (slot && slot->background)
        problem(&errors, slot->background, slot->answer.bytes, slot->answer.length);
    else if (slot) finished(slot, !code && slot->status_ok, slot->answer.bytes, slot->answer.length);
    return 0;
}

static void h2_open(Connection *c) {
    nghttp2_option *manual;
    static nghttp2_session_callbacks *callbacks;
    if (!callbacks) {
        nghttp2_session_callbacks_new(&callbacks);
        nghttp2_session_callbacks_set_send_callback(callbacks, h2_send);
        nghttp2_session_callbacks_set_send_data_callback(callbacks, h2_send_data);
        nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, h2_frame_size);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, h2_header);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, h2_data);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, h2_close);
    }
    nghttp2_option_new(&manual);
    nghttp2_option_set_no_auto_window_update(manual, opt.unread > 0);
    nghttp2_session_client_new2(&c->h2, callbacks, c, manual);
    nghttp2_option_del(manual);
    uint32_t window = opt.unread ? 65535 : 1 << 20;
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                         {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window}};
    nghttp2_submit_settings(c->h2, NGHTTP2_FLAG_NONE, settings, 2);
}

static nghttp2_nv header(const char *name, const char *value) {
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

static void h2_request(Slot *slot) {
    char authority[32], trace[64], timeout[16];
    nghttp2_nv nv[MAX_STREAMS_NV];
    size_t n = 0;
    snprintf(authority, sizeof authority, "127.0.0.1:%d", opt.port);
    nv[n++] = header(":method", "POST");
    nv[n++] = header(":scheme", "http");
    nv[n++] = header(":path", slot == &unread ? stream_path : opt.grpc_path);
    nv[n++] = header(":authority", authority);
    nv[n++] = header("te", "trailers");
    nv[n++] = header("content-type", "application/grpc");
    nv[n++] = header("user-agent", "grpc-c/1.0 (linux)");
    if (opt.vary) {
        uint64_t mixed = ++sequence * 0x9E3779B97F4A7C15u;
        snprintf(trace, sizeof trace, "00-%016lx%016lx-%016lx-01", mixed, sequence, ~mixed);
        snprintf(timeout, sizeof timeout, "%luu", 4000000 + mixed % 1000000);
        nv[n++] = header("traceparent", trace);
        nv[n++] = header("grpc-timeout", timeout);
    }
    nghttp2_data_provider message = {.source.ptr = slot, .read_callback = h2_read_message};
    slot->sent = slot->answer.length = 0;
    slot->status_ok = 0;
    int id = nghttp2_submit_request(slot->connection->h2, NULL, nv, n, &message, slot);
    if (id < 0) die("nghttp2_submit_request: %s", nghttp2_strerror(id));
}

static void h2_write(Connection *c) {
    int rc = nghttp2_session_send(c->h2);
    if (rc) die("nghttp2_session_send: %s", nghttp2_strerror(rc));
    flush(c);
}

/* ---- connections and HTTP/1.1 ---- */

static void open_connection(Connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (tls_context) {
        c->tls = SSL_new(tls_context);
        SSL_set_fd(c->tls, c->fd);
        if (SSL_connect(c->tls) != 1) die("TLS handshake: %s", ERR_error_string(ERR_get_error(), NULL));
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->queued = c->want_write = 0;
    c->arena_used = c->input.length = 0;
    watch(c, EPOLL_CTL_ADD);
    if (opt.grpc_path) h2_open(c);
}

static void reopen_connection(Connection *c) {
    if (c->tls) SSL_free(c->tls);
    close(c->fd);
    open_connection(c);
}

static void start(Slot *slot, uint64_t started_ns) {
    slot->request = &cases[next_case++ % case_count];
    slot->started_ns = started_ns;
    in_flight++;
    if (opt.grpc_path) {
        h2_request(slot); /* written by the caller, with its neighbours */
    } else {
        refer(slot->connection, slot->request->bytes, slot->request->length);
        flush(slot->connection);
    }
}

static void http1_response(Connection *c) {
    Bytes *in = &c->input;
    in->bytes[in->length] = 0;
    uint8_t *end = memmem(in->bytes, in->length, "\r\n\r\n", 4);
    if (!end) return;
    size_t head = (size_t)(end + 4 - in->bytes);
    *end = 0;
    char *field = strcasestr((char *)in->bytes, "\r\ncontent-length:");
    int closing = strcasestr((char *)in->bytes, "\r\nconnection: close") != NULL;
    *end = '\r';
    if (!field) die("the response has no Content-Length");
    size_t body = strtoul(field + 17, NULL, 10);
    if (in->length < head + body) return;
    if (in->length > head + body) die("more bytes than the response has");
    int ok = !memcmp(in->bytes, "HTTP/1.1 200", 12);
    in->length = 0;
    if (closing) reopen_connection(c);
    finished(c->slots, ok, in->bytes + head, body);
}

static void receive(Connection *c) {
    static uint8_t buffer[READ_SIZE];
    for (;;) {
        uint8_t *into = buffer;
        if (!c->h2) {
            reserve(&c->input, READ_SIZE);
            into = c->input.bytes + c->input.length;
        }
        ssize_t n = c->tls ? SSL_read(c->tls, into, READ_SIZE) : recv(c->fd, into, READ_SIZE, 0);
        if (n <= 0) {
            if (c->tls ? SSL_get_error(c->tls, (int)n) == SSL_ERROR_WANT_READ : n < 0 && errno == EAGAIN) break;
            die("the server closed a connection (%s)", n ? strerror(errno) : "end of stream");
        }
        if (c->h2) {
            ssize_t rc = nghttp2_session_mem_recv(c->h2, buffer, (size_t)n);
            if (rc < 0) die("HTTP/2: %s", nghttp2_strerror((int)rc));
        } else {
            c->input.length += (size_t)n;
            http1_response(c);
        }
        if (n < READ_SIZE && !c->tls) break;
    }
    if (c->h2) h2_write(c);
}

/* ---- the run ---- */

static void send_due(void) {
    uint64_t now = now_ns();
    while (!stopping && idle_count && next_due_ns <= now) {
        Slot *slot = idle[--idle_count];
        start(slot, next_due_ns);
        if (opt.grpc_path) h2_write(slot->connection);
        next_due_ns += (uint64_t)(1e9 / opt.rate);
    }
    struct itimerspec at = {.it_value = {(time_t)(next_due_ns / 1000000000u), (long)(next_due_ns % 1000000000u)}};
    if (idle_count) timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static uint8_t *varint(uint8_t *at, size_t value) {
    for (; value > 127; value >>= 7) *at++ = (uint8_t)(value | 128);
    *at++ = (uint8_t)value;
    return at;
}

/* A ModelInferRequest with so many bytes of tensor, for a model that is not there. */
static Case upload_message(size_t tensor) {
    uint8_t *bytes = calloc(1, tensor + 64), *at = bytes + 5, shape[10];
    if (!bytes) die("out of memory");
    size_t shape_length = (size_t)(varint(shape, tensor) - shape);
    at += sprintf((char *)at, "\n\006upload*%c\n\001x\022\005UINT8\032%c", (int)(12 + shape_length), (int)shape_length);
    memcpy(at, shape, shape_length);
    at += shape_length;
    *at++ = 0x3a;
    at = varint(at, tensor) + tensor;
    size_t size = (size_t)(at - bytes) - 5;
    for (int i = 0; i < 4; i++) bytes[1 + i] = (uint8_t)(size >> (24 - 8 * i));
    return (Case){.bytes = bytes, .length = (uint32_t)size + 5};
}

/* The first case again and again. */
static Case repeated_message(size_t times) {
    size_t size = cases[0].length;
    uint8_t *bytes = grow(NULL, times * size);
    for (size_t i = 0; i < times; i++) memcpy(bytes + i * size, cases[0].bytes, size);
    return (Case){.bytes = bytes, .length = (uint32_t)(times * size)};
}

static void start_background(Slot *slot, Connection *c, Case message) {
    Case *request = grow(NULL, sizeof *request);
    *request = message;
    slot->connection = c;
    slot->request = request;
    h2_request(slot);
}

static void begin(void) {
    int slots = opt.grpc_path ? opt.streams : 1;
    connections = calloc((size_t)opt.connections, sizeof *connections);
    idle = calloc((size_t)(opt.connections * slots), sizeof *idle);
    for (int i = 0; i < opt.connections; i++) {
        Connection *c = &connections[i];
        c->slots = calloc((size_t)slots, sizeof *c->slots);
        open_connection(c);
        if (!i && opt.unread) start_background(&unread, c, repeated_message((size_t)opt.unread));
        if (!i && opt.upload) start_background(&upload, c, upload_message(opt.upload));
        for (int s = 0; s < slots; s++) {
            c->slots[s].connection = c;
            if (opt.rate > 0)
                idle[idle_count++] = &c->slots[s];
            else
                start(&c->slots[s], now_ns());
        }
        if (opt.grpc_path) h2_write(c);
    }
    if (opt.rate > 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
        next_due_ns = now_ns();
        send_due();
    }
}

static void turn(void) {
    struct epoll_event events[256];
    uint64_t expirations;
    int n = epoll_wait(epoll_fd, events, 256, 100);
    for (int i = 0; i < n; i++) {
        Connection *c = events[i].data.ptr;
        if (!c) {
            if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timerfd");
            continue;
        }
        if (events[i].events & EPOLLOUT) {
            flush(c);
            if (c->h2) h2_write(c);
        }
        if (events[i].events & ~(unsigned)EPOLLOUT) receive(c);
    }
    if (opt.rate > 0) send_due();
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void report(double busy_s, double window_s) {
    static const double quantiles[] = {0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1};
    errors += (uint64_t)in_flight;
    qsort(latencies_us, kept, sizeof *latencies_us, by_value);
    printf("{\"requests\": %lu, \"seconds\": %.6f, \"total\": %lu, \"errors\": %lu, \"mismatches\": %lu, "
           "\"first_problem\": \"%s\", \"uploads\": %lu, \"generator_busy\": %.4f, \"quantiles_us\": {",
           kept, window_s, total, errors, mismatches, first_problem, uploads, busy_s / window_s);
    for (size_t i = 0; kept && i < sizeof quantiles / sizeof *quantiles; i++) {
        size_t rank = (size_t)ceil(quantiles[i] * (double)kept);
        printf("%s\"%g\": %.2f", i ? ", " : "", quantiles[i], latencies_us[rank ? rank - 1 : 0]);
    }
    puts("}}");
}

static void options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'},   {"connections", 1, 0, 'c'}, {"streams", 1, 0, 'm'}, {"seconds", 1, 0, 's'},
        {"warmup", 1, 0, 'w'}, {"rate", 1, 0, 'r'},        {"tls", 0, 0, 't'},     {"vary", 0, 0, 'v'},
        {"upload", 1, 0, 'u'}, {"unread", 1, 0, 'n'},
        {"grpc", 1, 0, 'g'},   {"marker", 1, 0, 'k'},      {"tolerance", 1, 0, 'e'}, {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", known, NULL)) != -1;) switch (o) {
        case 'p': opt.port = atoi(optarg); break;
        case 'c': opt.connections = atoi(optarg); break;
        case 'm': opt.streams = atoi(optarg); break;
        case 's': opt.seconds = atof(optarg); break;
        case 'w': opt.warmup_s = atof(optarg); break;
        case 'r': opt.rate = atof(optarg); break;
        case 't': opt.tls = 1; break;
        case 'v': opt.vary = 1; break;
        case 'u': opt.upload = (size_t)atoll(optarg); break;
        case 'n': opt.unread = atoi(optarg); break;
        case 'g': opt.grpc_path = optarg; break;
        case 'k': opt.marker = optarg; break;
        case 'e': opt.tolerance = atof(optarg); break;
        default: exit(2);
        }
    if (optind != argc - 1 || !opt.port) die("usage: load --port N [options] CASES");
    opt.cases = argv[optind];
}

int main(int argc, char **argv) {
    options(argc, argv);
    read_cases();
    epoll_fd = epoll_create1(0);
    if (opt.tls) {
        tls_context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
    /* Requests on a schedule measure how long the server takes. The clients of a server that has a
     * core too few would wait for it themselves: on a machine of their own they would not. */
    if (opt.rate > 0) sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
    window_start_ns = now_ns() + (uint64_t)(opt.warmup_s * 1e9);
    window_end_ns = window_start_ns + (uint64_t)(opt.seconds * 1e9);
    begin();
    while (now_ns() < window_start_ns) turn();
    double cpu_before_s = cpu_s();
    uint64_t measured_from_ns = now_ns(), now;
    while ((now = now_ns()) < window_end_ns) turn();
    double busy_s = cpu_s() - cpu_before_s;
    stopping = 1;
    for (uint64_t last_ns = now + 10000000000u; in_flight && now_ns() < last_ns;) turn();
    report(busy_s, (double)(now - measured_from_ns) / 1e9);
    return errors || mismatches ? 1 : 0;
}
