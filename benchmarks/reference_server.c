/* The reference server of reference_server.py again, so fast that it is never what is measured.
 *
 *     cc -O2 -std=gnu11 -Wall -Wextra -o reference_server reference_server.c
 *     ./reference_server --port 0 [--ttft-ms 200 --itl-ms 20] [--chunks 128] [--together]
 *                        [--vary] [--spin] [--no-truth]
 *
 * The same flags, the same answers byte for byte, the same truth log. One thread, one epoll loop: each
 * chunk is one write() of its own, stamped just before it; a chunk that a full socket does not take is
 * stamped again when it goes out. With --together, the chunks of a stream without pauses share a write(),
 * 64 at most, and its stamp. With --vary, chunks differ in their text and in a padding. Due chunks wait in a heap; the last stretch before one is due is spent
 * polling, as no kernel timer wakes a process to the microsecond. So this server wants a CPU of its own.
 *
 * It shares no code with the harness, whose clients it judges. It ends at the first signal, and at
 * anything that would make its log untrue.
 */

#define _GNU_SOURCE /* memmem, accept4, epoll_pwait2 */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    EVENTS = 64,
    ACCEPTS = 8,           /* connections accepted before something else has its turn */
    BURST = 256,           /* chunks without pauses written to one client before the next has its turn */
    TOGETHER = 64,         /* of them in one write, if they may share one: some 12 KiB */
    KINDS = 64,            /* chunks of a stream that differ before they come again */
    REQUEST_BYTES = 4096,  /* the room a request has at first */
    POLL_NS = 60000,       /* what is due sooner than this is not slept for */
};

#define EVENT_START                                                                                        \
    "{\"id\": \"chatcmpl-reference\", \"object\": \"chat.completion.chunk\", \"created\": 1700000000, "    \
    "\"model\": \"reference\", \"choices\": [{\"index\": 0, \"delta\": "
static const char TOKEN[] = EVENT_START "{\"content\": \"token \"}, \"finish_reason\": null}]}";
static const char VARIED[] =
    EVENT_START "{\"content\": \"tok%03zu\"}, \"finish_reason\": null}], \"obfuscation\": \"%08" PRIx32 "\"}";
static const char LAST_TOKEN[] = EVENT_START "{\"content\": \"token.\"}, \"finish_reason\": \"stop\"}]}";
static const char USAGE[] = EVENT_START "{}, \"finish_reason\": null}], \"usage\": {\"prompt_tokens\": 16, "
                                        "\"completion_tokens\": %zu, \"total_tokens\": %zu}}";
static const char ANSWER[] =
    "{\"id\": \"chatcmpl-reference\", \"object\": \"chat.completion\", \"created\": 1700000000, "
    "\"model\": \"reference\", \"choices\": [{\"index\": 0, \"message\": {\"role\": \"assistant\", "
    "\"content\": \"All work and no play.\"}, \"finish_reason\": \"stop\"}], "
    "\"usage\": {\"prompt_tokens\": 16, \"completion_tokens\": 8, \"total_tokens\": 24}}";
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char NOT_FOUND[] = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n";

typedef struct {
    int fd;        /* -1: gone, and to be freed by the heap, which still holds it */
    bool queued;   /* in the heap */
    bool blocked;  /* its socket is full, or broken: it waits for epoll */
    char *in;      /* the request so far */
    size_t in_bytes, in_room;
    int64_t read_ns;
    char *rest;    /* what a short write has left */
    size_t rest_at, rest_bytes;
    size_t token, tokens;  /* of the stream being written; equal where there is none */
    int64_t first_ns;      /* when its first token is due */
    size_t row;            /* its truth, unless that has been told meanwhile */
    uint64_t telling;
} Client;

typedef struct {
    size_t id_at, id_bytes;
    int64_t received_ns;
    int64_t *chunk_ns;
    size_t chunks, room;
} Row;

typedef struct {
    int64_t due_ns;
    Client *client;
} Due;

static struct {
    int64_t ttft_ns, itl_ns;
    size_t chunks;
    int spin, truth, together, vary;
} options = {.chunks = 128, .truth = 1};

static struct {
    Row *rows;
    size_t count, room;
    char *ids;
    size_t ids_bytes, ids_room;
    uint64_t telling;
} truth;

static Due *heap;
static size_t heap_count, heap_room;

static char token_pieces[KINDS][512], json_answer[1024]; /* all as long: token_bytes */
static size_t token_bytes, json_bytes;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* The array, with room for `wanted` elements or more. */
static void *grown(void *array, size_t *room, size_t wanted, size_t element_bytes)
{
    if (wanted <= *room)
        return array;
    *room = wanted > 2 * *room ? wanted : 2 * *room;
    array = realloc(array, *room * element_bytes);
    if (!array)
        die("realloc");
    return array;
}

/* -- what is due --------------------------------------------------------------------------------------- */

static void sift_down(Due due)
{
    size_t at = 0, child;
    while ((child = 2 * at + 1) < heap_count) {
        if (child + 1 < heap_count && heap[child + 1].due_ns < heap[child].due_ns)
            child++;
        if (due.due_ns <= heap[child].due_ns)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = due;
}

static void push(Client *client, int64_t due_ns)
{
    heap = grown(heap, &heap_room, heap_count + 1, sizeof *heap);
    size_t at = heap_count++;
    for (; at && due_ns < heap[(at - 1) / 2].due_ns; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = (Due){due_ns, client};
    client->queued = true;
}

static void pop(void)
{
    heap[0].client->queued = false;
    if (--heap_count)
        sift_down(heap[heap_count]);
}

/* Late tokens don't move the rest; without pauses, who has waited longest is next. */
static int64_t due_ns(const Client *client)
{
    if (!options.itl_ns && client->token)
        return now_ns();
    return client->first_ns + (int64_t)client->token * options.itl_ns;
}

/* -- writing ------------------------------------------------------------------------------------------- */

/* How many bytes the socket took. If not all: the client is blocked until epoll says that it can go on,
 * or that it is gone. */
static size_t put(Client *client, const char *bytes, size_t count)
{
    ssize_t took;
    do
        took = write(client->fd, bytes, count);
    while (took < 0 && errno == EINTR);
    client->blocked = took != (ssize_t)count;
    return took < 0 ? 0 : (size_t)took;
}

static void keep(Client *client, const char *bytes, size_t count)
{
    client->rest = malloc(count);
    if (!client->rest)
        die("malloc");
    memcpy(client->rest, bytes, count);
    client->rest_at = 0;
    client->rest_bytes = count;
}

static void say(Client *client, const char *bytes, size_t count)
{
    size_t took = put(client, bytes, count);
    if (took < count)
        keep(client, bytes + took, count - took);
}

/* An event as a chunk of its own; how long that is. */
static size_t chunk(char *to, const char *payload)
{
    return (size_t)sprintf(to, "%zx\r\ndata: %s\n\n\r\n", strlen(payload) + 8, payload);
}

/* The last token, and with it usage and the end marker. */
static size_t ending(char *to, size_t tokens)
{
    char usage[512];
    sprintf(usage, USAGE, tokens, 16 + tokens);
    size_t bytes = chunk(to, LAST_TOKEN);
    bytes += chunk(to + bytes, usage);
    bytes += chunk(to + bytes, "[DONE]");
    return bytes + (size_t)sprintf(to + bytes, "0\r\n\r\n");
}

static Row *row_of(const Client *client)
{
    return options.truth && client->telling == truth.telling ? &truth.rows[client->row] : NULL;
}

/* Write the next tokens, `most` at most, by one write. Those that the socket took no byte of are not gone. */
static void write_tokens(Client *client, size_t most)
{
    static char pieces[TOGETHER * sizeof token_pieces[0] + 1536];
    size_t left = client->tokens - client->token, count = left < most ? left : most, bytes = 0;
    for (size_t at = 0; at < count - (count == left); at++, bytes += token_bytes)
        memcpy(pieces + bytes, token_pieces[(client->token + at) % KINDS], token_bytes);
    if (count == left)
        bytes += ending(pieces + bytes, client->tokens);
    Row *row = row_of(client);
    if (row) {
        row->chunk_ns = grown(row->chunk_ns, &row->room, row->chunks + count, sizeof *row->chunk_ns);
        int64_t stamp_ns = now_ns();
        for (size_t at = 0; at < count; at++)
            row->chunk_ns[row->chunks + at] = stamp_ns;
    }
    size_t took = put(client, pieces, bytes);
    size_t begun = (took + token_bytes - 1) / token_bytes;
    if (begun >= count)
        begun = count;
    else
        bytes = begun * token_bytes;
    if (took < bytes)
        keep(client, pieces + took, bytes - took);
    if (row)
        row->chunks += begun;
    client->token += begun;
}

/* -- the truth ----------------------------------------------------------------------------------------- */

static void note(Client *client, const char *id, size_t id_bytes)
{
    truth.rows = grown(truth.rows, &truth.room, truth.count + 1, sizeof *truth.rows);
    truth.ids = grown(truth.ids, &truth.ids_room, truth.ids_bytes + id_bytes, 1);
    if (id_bytes)
        memcpy(truth.ids + truth.ids_bytes, id, id_bytes);
    truth.rows[truth.count] =
        (Row){.id_at = truth.ids_bytes, .id_bytes = id_bytes, .received_ns = client->read_ns};
    truth.ids_bytes += id_bytes;
    client->row = truth.count++;
    client->telling = truth.telling;
}

/* A row as a JSON line; `to` has room for it. */
static size_t line(char *to, const Row *row)
{
    char *end = to + sprintf(to, "{\"id\": \"");
    for (size_t at = 0; at < row->id_bytes; at++) {
        unsigned char byte = (unsigned char)truth.ids[row->id_at + at];
        if (byte == '"' || byte == '\\')
            *end++ = '\\';
        if (byte < ' ')
            end += sprintf(end, "\\u%04x", byte);
        else
            *end++ = (char)byte;
    }
    end += sprintf(end, "\", \"received_ns\": %" PRId64 ", \"chunk_ns\": [", row->received_ns);
    for (size_t at = 0; at < row->chunks; at++)
        end += sprintf(end, at ? ", %" PRId64 : "%" PRId64, row->chunk_ns[at]);
    return (size_t)(end + sprintf(end, "]}\n") - to);
}

static void tell_truth(Client *client)
{
    char *body = NULL, head[256];
    size_t bytes = 0, room = 0;
    for (size_t at = 0; at < truth.count; at++) {
        Row *row = &truth.rows[at];
        body = grown(body, &room, bytes + 128 + 6 * row->id_bytes + 24 * row->chunks, 1);
        bytes += line(body + bytes, row);
        free(row->chunk_ns);
    }
    truth.count = truth.ids_bytes = 0;
    truth.telling++;
    size_t head_bytes = (size_t)sprintf(head, HEAD, "application/x-ndjson", bytes);
    body = grown(body, &room, bytes + head_bytes, 1);
    memmove(body + head_bytes, body, bytes);
    memcpy(body, head, head_bytes);
    say(client, body, head_bytes + bytes);
    free(body);
}

/* -- reading ------------------------------------------------------------------------------------------- */

/* A header's value, which ends with \r; NULL if the head, which ends at `end`, has none. `name` brings
 * the line break before it and its colon. */
static const char *header(const char *head, const char *end, const char *name)
{
    size_t bytes = strlen(name);
    while ((head = memchr(head, '\r', (size_t)(end - head)))) {
        if (!strncasecmp(head, name, bytes))
            return head + bytes + strspn(head + bytes, " \t");
        head++;
    }
    return NULL;
}

static bool has(const char *from, const char *end, const char *what)
{
    return memmem(from, (size_t)(end - from), what, strlen(what));
}

static size_t tokens_asked(const char *body, const char *end)
{
    static const char KEY[] = "\"max_tokens\":";
    while ((body = memmem(body, (size_t)(end - body), KEY, sizeof KEY - 1))) {
        body += sizeof KEY - 1;
        const char *number = body + strspn(body, " \t\r\n");
        if (*number >= '0' && *number <= '9')
            return strtoul(number, NULL, 10);
    }
    return options.chunks;
}

/* Answer the whole request that was read; `body` is where its head ends. */
static void answer(Client *client, const char *body)
{
    const char *end = client->in + client->in_bytes;
    if (!strncmp(client->in, "GET", 3)) {
        if (!strncmp(client->in, "GET /__truth ", 13))
            tell_truth(client);
        else
            say(client, NOT_FOUND, sizeof NOT_FOUND - 1);
        return;
    }
    bool streamed = has(body, end, "\"stream\":true") || has(body, end, "\"stream\": true");
    if (options.truth) {
        const char *id = header(client->in, body, "\r\nx-request-id:");
        note(client, id, id ? strcspn(id, "\r") : 0);
    }
    if (!streamed) {
        say(client, json_answer, json_bytes);
        return;
    }
    size_t tokens = tokens_asked(body, end);
    client->token = 0;
    client->tokens = tokens ? tokens : 1;
    client->first_ns = client->read_ns + options.ttft_ns;
    say(client, STREAM_HEAD, sizeof STREAM_HEAD - 1);
    if (!client->blocked)
        push(client, due_ns(client));
}

/* Answer what was read if it is whole, and the client has had its last answer. */
static void gather(Client *client)
{
    if (client->blocked || client->token < client->tokens)
        return;
    const char *body = memmem(client->in, client->in_bytes, "\r\n\r\n", 4);
    if (!body)
        return;
    client->in[client->in_bytes] = 0;
    const char *length = header(client->in, body + 2, "\r\ncontent-length:");
    if (client->in_bytes < (size_t)(body + 4 - client->in) + (length ? strtoul(length, NULL, 10) : 0))
        return;
    answer(client, body);
    client->in_bytes = 0;
}

static void drop(Client *client)
{
    close(client->fd);
    client->fd = -1;
    free(client->in);
    free(client->rest);
    if (!client->queued)
        free(client);
}

/* Read all there is; false if the client is gone. Epoll tells only once, so what it tells is used up: a
 * read that does not fill its room has emptied the socket, but for the end of one that hung up. */
static bool receive(Client *client, bool hung_up)
{
    for (;;) {
        size_t wanted = client->in_bytes + 2 > REQUEST_BYTES ? client->in_bytes + 2 : REQUEST_BYTES;
        client->in = grown(client->in, &client->in_room, wanted, 1);
        size_t room = client->in_room - client->in_bytes - 1;  /* what is read gets a zero at its end */
        ssize_t got = read(client->fd, client->in + client->in_bytes, room);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return true;
        if (got <= 0) {
            drop(client);
            return false;
        }
        client->read_ns = now_ns();
        client->in_bytes += (size_t)got;
        gather(client);
        if ((size_t)got < room && !hung_up)
            return true;
    }
}

/* The socket has room again: write what was left over, then go on. */
static void resume(Client *client)
{
    client->blocked = false;
    if (client->rest) {
        client->rest_at += put(client, client->rest + client->rest_at, client->rest_bytes - client->rest_at);
        if (client->blocked)
            return;
        free(client->rest);
        client->rest = NULL;
    }
    if (client->token < client->tokens)
        push(client, due_ns(client));
    else
        gather(client);
}

/* -- the loop ------------------------------------------------------------------------------------------ */

static bool has_more(const Client *client)
{
    return !client->blocked && client->token < client->tokens;
}

/* Write to the client whose turn it is. To one only: who asks goes first, for a chunk that is written late
 * shows in the log, and a request that is read late does not. */
static void write_due(void)
{
    if (!heap_count || heap[0].due_ns > now_ns())
        return;
    Client *client = heap[0].client;
    if (client->fd < 0) {
        pop();
        free(client);
        return;
    }
    int each = options.together && !options.itl_ns ? TOGETHER : 1;
    for (int left = options.itl_ns ? 1 : BURST; left > 0 && has_more(client); left -= each)
        write_tokens(client, (size_t)each);
    if (has_more(client)) {
        sift_down((Due){due_ns(client), client});
        return;
    }
    pop();
    gather(client);
}

static void welcome(int epoll, int listener)
{
    for (int left = ACCEPTS; left; left--) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR))
            return;
        if (fd < 0)
            die("accept");
        Client *client = calloc(1, sizeof *client);
        if (!client)
            die("calloc");
        client->fd = fd;
        struct epoll_event event = {
            .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = client};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
            die("epoll_ctl");
    }
}

/* Wait until somebody asks, or until shortly before something is due. */
static int await(int epoll, struct epoll_event *events)
{
    int64_t wait_ns = 0;
    if (!options.spin && heap_count)
        wait_ns = heap[0].due_ns - now_ns() - POLL_NS;
    if (wait_ns < 0)
        wait_ns = 0;
    struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
    bool forever = !options.spin && !heap_count;
    return epoll_pwait2(epoll, events, EVENTS, forever ? NULL : &wait, NULL);
}

static void serve(int listener)
{
    struct epoll_event events[EVENTS], asked = {.events = EPOLLIN, .data.ptr = NULL};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &asked))
        die("epoll");
    for (;;) {
        write_due();
        int count = await(epoll, events);
        if (count < 0 && errno != EINTR)
            die("epoll_pwait2");
        for (int at = 0; at < count; at++) {
            Client *client = events[at].data.ptr;
            uint32_t what = events[at].events;
            if (!client) {
                welcome(epoll, listener);
                continue;
            }
            /* Only its own event frees a client that is not queued, and each has one event at most. */
            if ((what & ~(uint32_t)EPOLLOUT) && !receive(client, what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
                continue;
            if ((what & EPOLLOUT) && client->blocked)
                resume(client);
        }
    }
}

/* -- starting ------------------------------------------------------------------------------------------ */

static int listen_at(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
    int error = getaddrinfo(host, port, &hints, &found), yes = 1;
    if (error) {
        fprintf(stderr, "%s: %s\n", host, gai_strerror(error));
        exit(1);
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) ||  /* accepted sockets inherit it */
        bind(fd, found->ai_addr, found->ai_addrlen) || listen(fd, 4096))
        die("listen");
    freeaddrinfo(found);
    return fd;
}

static int port_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof address;
    char port[NI_MAXSERV];
    if (getsockname(fd, (struct sockaddr *)&address, &bytes) ||
        getnameinfo((struct sockaddr *)&address, bytes, NULL, 0, port, sizeof port, NI_NUMERICSERV))
        die("getsockname");
    return atoi(port);
}

static double number(const char *flag, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0 && value < 1e9)) {
        fprintf(stderr, "--%s: not a number that makes sense: %s\n", flag, text);
        exit(2);
    }
    return value;
}

int main(int count, char **arguments)
{
    static const struct option flags[] = {
        {"host", required_argument, NULL, 'h'},   {"port", required_argument, NULL, 'p'},
        {"ttft-ms", required_argument, NULL, 't'}, {"itl-ms", required_argument, NULL, 'i'},
        {"chunks", required_argument, NULL, 'c'}, {"spin", no_argument, &options.spin, 1},
        {"truth", no_argument, &options.truth, 1}, {"no-truth", no_argument, &options.truth, 0},
        {"together", no_argument, &options.together, 1}, {"vary", no_argument, &options.vary, 1},
        {NULL, 0, NULL, 0},
    };
    const char *host = "127.0.0.1", *port = "0";
    int flag;
    while ((flag = getopt_long(count, arguments, "", flags, NULL)) != -1) {
        if (flag == '?')
            return 2;
        if (flag == 'h')
            host = optarg;
        if (flag == 'p')
            port = optarg;
        if (flag == 't')
            options.ttft_ns = (int64_t)(number("ttft-ms", optarg) * 1e6);
        if (flag == 'i')
            options.itl_ns = (int64_t)(number("itl-ms", optarg) * 1e6);
        if (flag == 'c')
            options.chunks = (size_t)number("chunks", optarg);
    }
    if (optind < count) {
        fprintf(stderr, "not a flag: %s\n", arguments[optind]);
        return 2;
    }
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files))
        die("getrlimit");
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files))
        die("setrlimit");
    if (prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL))  /* else the kernel may wake us 50 us late */
        die("prctl");
    signal(SIGPIPE, SIG_IGN);
    for (size_t kind = 0; kind < KINDS; kind++) {
        char varied[512];
        sprintf(varied, VARIED, kind, (uint32_t)(kind + 1) * UINT32_C(2654435761));
        token_bytes = chunk(token_pieces[kind], options.vary ? varied : TOKEN);
    }
    json_bytes = (size_t)sprintf(json_answer, HEAD, "application/json", sizeof ANSWER - 1);
    json_bytes += (size_t)sprintf(json_answer + json_bytes, "%s", ANSWER);
    int listener = listen_at(host, port);
    printf("http://%s:%d\n", host, port_of(listener));
    fflush(stdout);
    serve(listener);
}
