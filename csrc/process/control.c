/*
 * control.c: the socket of the process: connections, requests, replies with descriptors. protocol.h says what they mean.
 *
 *   accept -> who is it? -> [recvmsg -> fp_request_read -> carry out -> sendmsg] until it hangs up
 *
 * Bounds: PROCESS_CONNECTIONS_MAX connections (more wait in the backlog), one request of one connection at a time, descriptors by
 * the buffer and RLIMIT_NOFILE; what is not used is closed at once. A reply that cannot be sent now ends its connection.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "process.h"

#define PAUSE_MS 100

struct descriptors {
    int fds[FP_PROTOCOL_FDS_MAX];
    size_t count;
};

union rights {
    struct cmsghdr align;
    uint8_t bytes[CMSG_SPACE(sizeof(int) * FP_PROTOCOL_FDS_MAX)];
};

static void close_descriptors(struct descriptors *got)
{
    for (size_t i = 0; i < got->count; i++)
        close(got->fds[i]);
    got->count = 0;
}

static void take_descriptors(struct msghdr *header, struct descriptors *got)
{
    for (struct cmsghdr *control = CMSG_FIRSTHDR(header); control; control = CMSG_NXTHDR(header, control)) {
        if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS)
            continue;
        /* The kernel puts all of a packet into one such message, and no more than the buffer holds. */
        got->count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(got->fds, CMSG_DATA(control), got->count * sizeof(int));
    }
}

/* Bytes of the packet, 0 at the end of the connection, -errno; descriptors are ours also when it is cut (-EMSGSIZE). */
static ssize_t receive(int connection, uint8_t *packet, struct descriptors *got)
{
    union rights rights;
    struct iovec iov = {.iov_base = packet, .iov_len = FP_PROTOCOL_BYTES_MAX};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = rights.bytes, .msg_controllen = sizeof(rights.bytes)};
    ssize_t bytes = recvmsg(connection, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    got->count = 0;
    if (bytes < 0)
        return -errno;
    take_descriptors(&header, got);
    return header.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? -EMSGSIZE : bytes;
}

/* 0 or -errno. */
static int send_reply(int connection, const void *message, size_t bytes, const struct descriptors *given)
{
    union rights rights;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)message, .iov_len = bytes};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};

    memset(&rights, 0, sizeof(rights));
    if (given && given->count) {
        size_t payload = given->count * sizeof(int);

        header.msg_control = rights.bytes;
        header.msg_controllen = CMSG_SPACE(payload);
        rights.align.cmsg_level = SOL_SOCKET;
        rights.align.cmsg_type = SCM_RIGHTS;
        rights.align.cmsg_len = CMSG_LEN(payload);
        memcpy(CMSG_DATA(&rights.align), given->fds, payload);
    }
    return sendmsg(connection, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static bool reply_head(int connection, uint16_t kind, int error)
{
    struct fp_message head = fp_reply_head(kind, sizeof(head), error);

    return send_reply(connection, &head, sizeof(head), NULL) == 0;
}

static void add(struct descriptors *given, int fd)
{
    given->fds[given->count++] = fd;
}

/* How we are; with `give` the descriptors too: queues, counters, and the table if there is one. */
static bool reply_state(const struct process *process, int connection, uint16_t kind, int error, bool give)
{
    struct descriptors given = {.count = 0};
    struct fp_message_state state = {.head = fp_reply_head(kind, sizeof(state), error),
                                     .state = process->datapath ? FP_PROCESS_RUNNING : FP_PROCESS_WAITING,
                                     .n_queues = process->n_queues,
                                     .confined = process->confined,
                                     .settings_bytes = sizeof(state.settings),
                                     .table_bytes = process->table_bytes,
                                     .page_bytes = (uint32_t)fp_page_bytes(),
                                     .n_verdicts = FP_VERDICT_COUNT,
                                     .n_work = FP_WORK_COUNT,
                                     .n_pages = process->n_pages,
                                     .settings = process->settings};

    memcpy(state.version, process->version, sizeof(state.version));
    if (give && process->datapath) {
        for (size_t i = 0; i < process->n_fds; i++)
            add(&given, process->fds[i]);
        add(&given, process->pages_fd);
        if (process->table_fd >= 0)
            add(&given, process->table_fd);
    }
    error = send_reply(connection, &state, sizeof(state), &given);
    /* Too many descriptors of our user are on their way already, perhaps to one who does not take them: no reason to hang up. */
    return error == -ETOOMANYREFS ? reply_head(connection, kind, error) : error == 0;
}

/* The workers finish what they have in hand; what is not read yet stays in the queues for whoever comes next. */
static void stop(struct process *process)
{
    if (process->datapath)
        fp_datapath_stop(process->datapath);
    process->datapath = NULL;
    process->stopping = true;
}

/* Carry out a request; false: hang up. Descriptors that are taken over are taken out of `got`. */
static bool carry_out(struct process *process, int connection, const struct fp_request *request, struct descriptors *got)
{
    int error;

    switch (request->kind) {
    case FP_MESSAGE_HELLO:
        return reply_state(process, connection, request->kind, 0, true);
    case FP_MESSAGE_START:
        error = process_start(process, &request->start, got->fds);
        got->count = 0;
        return reply_state(process, connection, request->kind, error, false);
    case FP_MESSAGE_TABLE:
        error = process_table(process, &request->table, got->fds[0]);
        got->count = 0;
        return reply_head(connection, request->kind, error);
    case FP_MESSAGE_HOLD:
        error = process_hold(process, &request->table, got->fds[0], got->count > 1 ? got->fds[1] : -1, connection);
        got->count = 0;
        return reply_head(connection, request->kind, error);
    case FP_MESSAGE_PING:
        return reply_head(connection, request->kind, 0);
    case FP_MESSAGE_STOP:
        stop(process);
        return reply_head(connection, request->kind, 0);
    default:
        return false;
    }
}

/* One packet of a connection; false: hang up. */
static bool serve(struct process *process, int connection, short events)
{
    uint8_t packet[FP_PROTOCOL_BYTES_MAX];
    struct descriptors got;
    struct fp_request request = {.kind = 0};
    ssize_t bytes = receive(connection, packet, &got);
    int error;
    bool goes_on;

    if (bytes == -EAGAIN || bytes == -EINTR)
        return !(events & (POLLERR | POLLHUP | POLLNVAL)); /* poll would return for these for ever */
    if (bytes == 0 || (bytes < 0 && bytes != -EMSGSIZE)) {
        close_descriptors(&got);
        return false;
    }
    error = bytes < 0 ? (int)bytes : fp_request_read(packet, (size_t)bytes, got.count, &request);
    goes_on = error ? reply_head(connection, request.kind, error) : carry_out(process, connection, &request, &got);
    close_descriptors(&got);
    return goes_on;
}

static bool may_talk(const struct process *process, int connection)
{
    struct ucred peer;
    socklen_t length = sizeof(peer);

    return getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && (peer.uid == 0 || peer.uid == process->starter);
}

/* 0 or -errno: it has given up, or we are out of descriptors or memory. */
static int accept_one(struct process *process, size_t place)
{
    int connection = accept4(process->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (connection < 0)
        return -errno;
    if (may_talk(process, connection))
        process->connections[place] = connection;
    else
        close(connection);
    return 0;
}

/* Any free place, or PROCESS_CONNECTIONS_MAX. */
static size_t free_place(const struct process *process)
{
    size_t place = 0;

    while (place < PROCESS_CONNECTIONS_MAX && process->connections[place] >= 0)
        place++;
    return place;
}

static void hang_up(struct process *process, size_t place)
{
    process_hung_up(process, process->connections[place]);
    close(process->connections[place]);
    process->connections[place] = -1;
}

static bool is_alone(const struct process *process)
{
    for (size_t i = 0; i < PROCESS_CONNECTIONS_MAX; i++) {
        if (process->connections[i] >= 0)
            return false;
    }
    return true;
}

static void serve_ready(struct process *process, const struct pollfd *polled)
{
    for (size_t i = 0; i < PROCESS_CONNECTIONS_MAX && !process->stopping; i++) {
        if (process->connections[i] < 0 || !polled[i].revents)
            continue;
        if (!serve(process, process->connections[i], polled[i].revents))
            hang_up(process, i);
    }
}

/*
 * Wait for something to do and do it. False: the kernel is short of something, or the listener is broken. Then whoever is connected is
 * served on, and nobody is let in for a while, for poll would return at once for those who wait.
 */
static bool serve_once(struct process *process, bool lets_in)
{
    struct pollfd polled[PROCESS_CONNECTIONS_MAX + 2];
    const struct pollfd *listener = &polled[PROCESS_CONNECTIONS_MAX], *other = &polled[PROCESS_CONNECTIONS_MAX + 1];
    size_t place = free_place(process);
    int error;

    for (size_t i = 0; i < PROCESS_CONNECTIONS_MAX; i++)
        polled[i] = (struct pollfd){.fd = process->connections[i], .events = POLLIN};
    polled[PROCESS_CONNECTIONS_MAX] = (struct pollfd){.fd = -1, .events = POLLIN};
    if (lets_in && place < PROCESS_CONNECTIONS_MAX) /* with all places taken nobody is let in */
        polled[PROCESS_CONNECTIONS_MAX].fd = process->listener;
    polled[PROCESS_CONNECTIONS_MAX + 1] = (struct pollfd){.fd = process_awaited_fd(process), .events = POLLIN};
    if (poll(polled, PROCESS_CONNECTIONS_MAX + 2, lets_in ? -1 : PAUSE_MS) < 0)
        return errno == EINTR; /* stopped and continued */
    if (other->revents)
        process_other_ended(process);
    serve_ready(process, polled);
    if (!listener->revents || process->stopping)
        return true;
    error = accept_one(process, place);
    return error == 0 || error == -EAGAIN || error == -EINTR || error == -ECONNABORTED;
}

void process_serve(struct process *process)
{
    bool lets_in = true;

    while (!process->stopping && (process->datapath || !is_alone(process))) {
        bool well = serve_once(process, lets_in);

        if (!well && !lets_in) /* poll itself has failed */
            poll(NULL, 0, PAUSE_MS);
        lets_in = well;
    }
}
