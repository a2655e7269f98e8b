/*
 * worker_in.c: the inward direction of a worker: UDP trains in, TUN frames out. What a packet becomes is decided by decap.c; here
 * are the system calls and what follows from their errors.
 *
 *   epoll_wait: lanes with something -> each: recvmsg until EAGAIN or the bounds -> fp_decap_train -> (no room or end) writev of every frame
 *
 * Fairness. A visit to a lane ends after TRAINS_PER_VISIT trains or PACKETS_PER_VISIT packets, whichever comes first: a train of 100 small packets
 * costs as much time as 100 trains of one. epoll tells of ready lanes in turn, so one that is never empty is visited once while each of the others is.
 *
 * Trains lie packed in the arena: each recvmsg gets 64 KB of room behind the train before it, so that many small datagrams of one
 * batch share few cache lines and pages. Errors of recvmsg other than EAGAIN are ICMP errors of earlier sends or a lack of memory;
 * they end the batch and nothing else, save those that say that the descriptor is not a socket.
 */
#include <errno.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker_state.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

#define LANES_PER_TURN 16u         /* these three keep a flood from the underlay from starving the other lanes, the other direction, */
#define TRAINS_PER_VISIT 64u       /* tables and stop */
#define PACKETS_PER_VISIT 256u     /* a few more, if the last train has many */
#define SLOT_BYTES 65536u          /* room of one receive: no datagram or train is longer, so truncation means a broken kernel */
#define ARENA_BYTES (4 * SLOT_BYTES)

struct train {
    uint8_t *data;
    size_t bytes;
    size_t segment_bytes; /* 0: a single datagram */
    struct fp_address sender;
    uint8_t tos;
};

union control {
    struct cmsghdr align;
    uint8_t bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(int)) + 64];
};

static void read_control(struct msghdr *header, struct train *train)
{
    for (struct cmsghdr *control = CMSG_FIRSTHDR(header); control; control = CMSG_NXTHDR(header, control)) {
        if (control->cmsg_level == IPPROTO_UDP && control->cmsg_type == UDP_GRO) {
            int segment_bytes;

            memcpy(&segment_bytes, CMSG_DATA(control), sizeof(segment_bytes));
            train->segment_bytes = segment_bytes > 0 ? (size_t)segment_bytes : 0;
        } else if (control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_TOS) {
            memcpy(&train->tos, CMSG_DATA(control), sizeof(train->tos));
        } else if (control->cmsg_level == IPPROTO_IPV6 && control->cmsg_type == IPV6_TCLASS) {
            int traffic_class;

            memcpy(&traffic_class, CMSG_DATA(control), sizeof(traffic_class));
            train->tos = (uint8_t)traffic_class;
        }
    }
}

/* IPv4 senders are ::ffff:a.b.c.d in the table. */
static struct fp_address address_of(const union fp_socket_address *from)
{
    struct fp_address address = {.bytes = {[10] = 0xff, [11] = 0xff}};

    if (from->any.sa_family == AF_INET6)
        memcpy(address.bytes, &from->v6.sin6_addr, sizeof(address.bytes));
    else
        memcpy(address.bytes + 12, &from->v4.sin_addr, sizeof(from->v4.sin_addr));
    return address;
}

static bool descriptor_is_broken(int error)
{
    return error == EBADF || error == ENOTSOCK || error == EINVAL || error == EFAULT;
}

/* Receive one train into the arena. False: nothing there (or an error that ends this visit). */
static bool receive(struct fp_worker *worker, int lane, struct train *train)
{
    union fp_socket_address from = {.v6 = {0}};
    union control control;
    struct iovec iov = {.iov_base = worker->in.arena + worker->in.used, .iov_len = SLOT_BYTES};
    struct msghdr header = {.msg_name = &from,
                            .msg_namelen = sizeof(from),
                            .msg_iov = &iov,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof(control.bytes)};
    ssize_t bytes = recvmsg(lane, &header, MSG_DONTWAIT);

    if (bytes < 0) {
        if (descriptor_is_broken(errno))
            fp_worker_fail(worker, errno);
        return false;
    }
    *train = (struct train){.data = iov.iov_base, .bytes = (size_t)bytes, .sender = address_of(&from)};
    if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        fp_worker_work(worker, FP_WORK_UDP_TRUNCATED, 1);
        train->data = NULL; /* not to be looked at */
        return true;
    }
    read_control(&header, train);
    return true;
}

static void write_frame(struct fp_worker *worker, const struct fp_write *frame)
{
    if (writev(worker->queue.tun_fd, frame->iov, (int)frame->iov_count) >= 0) {
        fp_worker_work(worker, FP_WORK_TUN_WRITES, 1);
        fp_worker_verdict(worker, FP_DECAPSULATED, frame->packets, frame->bytes);
        return;
    }
    if (fp_worker_tun_is_gone(errno))
        fp_worker_fail(worker, errno);
    fp_worker_verdict(worker, FP_DROP_WRITE, frame->packets, frame->bytes);
}

/* Write all frames, answer what ran out of time to live, and make the decapsulator empty. */
static void flush(struct fp_worker *worker)
{
    const struct fp_write *frames;
    const struct iovec *expired;
    size_t count = fp_decap_writes(worker->in.decap, &frames);

    for (size_t i = 0; i < count; i++)
        write_frame(worker, &frames[i]);
    count = fp_decap_expired(worker->in.decap, &expired);
    for (size_t i = 0; i < count; i++)
        fp_worker_answer(worker, FP_DROP_TTL, expired[i].iov_base, expired[i].iov_len, 0);
    fp_decap_reset(worker->in.decap);
}

static size_t datagrams_in(size_t bytes, size_t segment_bytes)
{
    return segment_bytes && bytes ? (bytes + segment_bytes - 1) / segment_bytes : 1;
}

/* What was taken of a train, and what became of it, for the peer that has sent it; a stranger's is counted by its verdicts alone. */
static void count_for_peer(struct fp_worker *worker, const struct train *train, size_t taken)
{
    struct fp_count refused = fp_decap_refused(worker->in.decap);
    struct fp_peer_count *peer = fp_peer_counts_of(worker->peers, worker->context.table, &train->sender);

    if (!peer)
        return;
    fp_bump(&peer->received.packets, datagrams_in(taken, train->segment_bytes) - refused.packets);
    fp_bump(&peer->received.bytes, taken - refused.bytes);
    fp_bump(&peer->dropped_in, refused.packets);
}

/* Offer what is left of a train from `offset` on; how much was taken. */
static size_t take_some(struct fp_worker *worker, const struct train *train, size_t offset)
{
    size_t taken = fp_decap_train(worker->in.decap, &worker->context, &train->sender, train->tos, train->data + offset,
                                  train->bytes - offset, train->segment_bytes);

    if (taken || !train->bytes)
        count_for_peer(worker, train, taken);
    return taken;
}

static void take_train(struct fp_worker *worker, const struct train *train)
{
    size_t taken = take_some(worker, train, 0);

    while (taken < train->bytes) {
        size_t more;

        flush(worker);
        more = take_some(worker, train, taken);
        if (!more) /* an empty decapsulator took nothing: cannot be, and must not become an endless loop */
            return;
        taken += more;
    }
}

/* How many packets there are in it. */
static size_t count_train(struct fp_worker *worker, const struct train *train)
{
    size_t segments = datagrams_in(train->bytes, train->segment_bytes);

    fp_worker_work(worker, FP_WORK_UDP_RECEIVES, 1);
    fp_worker_work(worker, FP_WORK_UDP_RECEIVED_SEGMENTS, segments);
    return segments;
}

static void make_room(struct fp_worker *worker, size_t bytes)
{
    struct fp_inward *in = &worker->in;

    in->used += (bytes + FP_CACHE_LINE - 1) / FP_CACHE_LINE * FP_CACHE_LINE;
    if (in->used + SLOT_BYTES > ARENA_BYTES) {
        flush(worker);
        in->used = 0;
    }
}

/* What waits in one lane, up to the bounds. True when there was something. */
static bool visit(struct fp_worker *worker, int lane)
{
    struct train train;
    unsigned trains = 0;
    size_t packets = 0;

    while (trains < TRAINS_PER_VISIT && packets < PACKETS_PER_VISIT && receive(worker, lane, &train)) {
        trains++;
        if (!train.data)
            continue;
        packets += count_train(worker, &train);
        take_train(worker, &train);
        make_room(worker, train.bytes);
    }
    return trains;
}

bool fp_inward_turn(struct fp_worker *worker)
{
    struct epoll_event ready[LANES_PER_TURN];
    int count = epoll_wait(worker->in.epoll_fd, ready, LANES_PER_TURN, 0);
    bool busy = false;

    worker->in.used = 0;
    for (int i = 0; i < count; i++)
        busy |= visit(worker, ready[i].data.fd);
    if (busy)
        flush(worker);
    return busy;
}

static int listen_to(const struct fp_worker *worker)
{
    for (uint32_t i = 0; i < worker->queue.n_lanes; i++) {
        struct epoll_event readable = {.events = EPOLLIN, .data.fd = worker->queue.udp_fds[i]};

        if (epoll_ctl(worker->in.epoll_fd, EPOLL_CTL_ADD, worker->queue.udp_fds[i], &readable) != 0)
            return -errno;
    }
    return 0;
}

int fp_inward_init(struct fp_worker *worker)
{
    struct fp_inward *in = &worker->in;
    size_t bytes = (fp_decap_bytes() + FP_CACHE_LINE - 1) / FP_CACHE_LINE * FP_CACHE_LINE;

    in->arena = aligned_alloc(FP_CACHE_LINE, ARENA_BYTES);
    in->decap_memory = aligned_alloc(FP_CACHE_LINE, bytes);
    if (!in->arena || !in->decap_memory)
        return -ENOMEM;
    in->decap = fp_decap_init(in->decap_memory);
    in->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return in->epoll_fd < 0 ? -errno : listen_to(worker);
}

void fp_inward_free(struct fp_worker *worker)
{
    if (worker->in.epoll_fd >= 0)
        close(worker->in.epoll_fd);
    free(worker->in.arena);
    free(worker->in.decap_memory);
}
