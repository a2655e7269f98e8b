/*
 * worker_send.c: runs of datagrams go to the underlay; what follows from the errors of a send. When which run goes is worker_out.c's.
 *
 * Errors of a send, per run of datagrams:
 *   EIO               the route or device cannot cut: no more UDP_SEGMENT on this socket, resend singly. It may have been one
 *                     route of many (IPsec, a device without checksum offload), so it is tried again after a minute
 *   EMSGSIZE, EINVAL  the path MTU has shrunk below the run's datagrams (EINVAL before Linux 6.14): tell the inner senders whose
 *                     packets may not be fragmented, send singly what is here (the kernel fragments those on the outside)
 *   EAGAIN, ENOBUFS   the socket's buffer is full: wait for room a bounded number of times, then drop
 *   others            EPERM of a firewall, unreachable, ...: drop; none of them is about the socket itself
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker_state.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

#define SENDS_PER_CALL 16u    /* messages of one sendmmsg; bounds the arrays on the stack */
#define OUTER_HEADER_BYTES4 28u /* IP and UDP */
#define OUTER_HEADER_BYTES6 48u
#define IPV4_HEADER_BYTES 20u
#define IPV4_FLAG_DF 0x40u
#define IPV4_ADDRESSES 12u      /* where they stand in a packet */
#define IPV6_ADDRESSES 8u
#define IPV6_MTU_MIN_BYTES 1280u

/* One message of a sendmmsg with all that it points to. */
struct message {
    union fp_socket_address to;
    struct iovec iov;
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int))];
    } control;
};

static bool address_of(const struct fp_worker *worker, uint32_t hop_index, union fp_socket_address *to)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    const struct fp_hop *hop = fp_table_hop(worker->context.table, hop_index);

    if (!hop)
        return false;
    if (memcmp(hop->address.bytes, mapped, sizeof(mapped)) == 0) {
        to->v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(hop->port)};
        memcpy(&to->v4.sin_addr, hop->address.bytes + 12, sizeof(to->v4.sin_addr));
    } else {
        to->v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(hop->port)};
        memcpy(&to->v6.sin6_addr, hop->address.bytes, sizeof(to->v6.sin6_addr));
    }
    return true;
}

static socklen_t address_bytes(const union fp_socket_address *address)
{
    return address->any.sa_family == AF_INET ? sizeof(address->v4) : sizeof(address->v6);
}

static void add_control(struct msghdr *header, int level, int type, const void *value, size_t bytes)
{
    struct cmsghdr *control = (struct cmsghdr *)(void *)((uint8_t *)header->msg_control + header->msg_controllen);

    control->cmsg_level = level;
    control->cmsg_type = type;
    control->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(control), value, bytes);
    header->msg_controllen += CMSG_SPACE(bytes);
}

static void fill(struct msghdr *header, struct message *message, uint8_t *data, size_t bytes, uint16_t segment_bytes, uint8_t tos)
{
    int tos_value = tos;

    memset(header, 0, sizeof(*header));
    memset(&message->control, 0, sizeof(message->control));
    message->iov = (struct iovec){.iov_base = data, .iov_len = bytes};
    header->msg_name = &message->to;
    header->msg_namelen = address_bytes(&message->to);
    header->msg_iov = &message->iov;
    header->msg_iovlen = 1;
    header->msg_control = message->control.bytes;
    if (segment_bytes)
        add_control(header, IPPROTO_UDP, UDP_SEGMENT, &segment_bytes, sizeof(segment_bytes));
    if (tos && message->to.any.sa_family == AF_INET)
        add_control(header, IPPROTO_IP, IP_TOS, &tos_value, sizeof(tos_value));
    else if (tos)
        add_control(header, IPPROTO_IPV6, IPV6_TCLASS, &tos_value, sizeof(tos_value));
    if (!header->msg_controllen)
        header->msg_control = NULL;
}

/* Where to count for a hop; NULL: nowhere. */
static struct fp_peer_count *peer_of(const struct fp_worker *worker, uint32_t hop_index)
{
    const struct fp_hop *hop = fp_table_hop(worker->context.table, hop_index);

    return hop ? fp_peer_counts_of(worker->peers, worker->context.table, &hop->address) : NULL;
}

static void sent(struct fp_worker *worker, uint32_t hop, uint64_t packets, uint64_t bytes)
{
    struct fp_peer_count *peer = peer_of(worker, hop);

    if (peer) {
        fp_bump(&peer->sent.packets, packets);
        fp_bump(&peer->sent.bytes, bytes);
    }
    fp_worker_work(worker, FP_WORK_UDP_SENDS, 1);
    fp_worker_work(worker, FP_WORK_UDP_SENT_SEGMENTS, packets);
    fp_worker_verdict(worker, FP_ENCAPSULATED, packets, bytes);
}

static void not_sent(struct fp_worker *worker, uint32_t hop, enum fp_verdict verdict, uint64_t packets, uint64_t bytes)
{
    struct fp_peer_count *peer = peer_of(worker, hop);

    if (peer)
        fp_bump(&peer->dropped_out, packets);
    fp_worker_verdict(worker, verdict, packets, bytes);
}

static bool buffer_is_full(int error)
{
    return error == EAGAIN || error == ENOBUFS || error == ENOMEM || error == EINTR;
}

/* False when this turn has waited long enough already. */
static bool wait_for_room(struct fp_worker *worker)
{
    struct pollfd socket = {.fd = worker->send_fd, .events = POLLOUT};

    if (!worker->out.waits_left)
        return false;
    worker->out.waits_left--;
    fp_worker_work(worker, FP_WORK_SEND_RETRIES, 1);
    poll(&socket, 1, 1);
    return true;
}

/* 0 or the errno that is left after the retries. */
static int send_bounded(struct fp_worker *worker, const struct msghdr *header)
{
    for (;;) {
        if (sendmsg(worker->send_fd, header, MSG_DONTWAIT) >= 0)
            return 0;
        if (!buffer_is_full(errno) || !wait_for_room(worker))
            return errno;
    }
}

static size_t segment_length(const struct fp_send *run, size_t offset)
{
    size_t left = run->bytes - offset;

    return left < run->segment_bytes ? left : run->segment_bytes;
}

/* Send each packet of a run by itself: what fits goes out, and one bad packet costs no other. */
static void send_singly(struct fp_worker *worker, const struct fp_send *run, struct message *message)
{
    struct msghdr header;

    for (size_t offset = 0; offset < run->bytes; offset += run->segment_bytes) {
        size_t bytes = segment_length(run, offset);
        int error;

        fill(&header, message, run->data + offset, bytes, 0, run->tos);
        error = send_bounded(worker, &header);
        if (!error)
            sent(worker, run->hop, 1, bytes);
        else
            not_sent(worker, run->hop, error == EMSGSIZE ? FP_DROP_TOO_BIG : FP_DROP_SEND, 1, bytes);
    }
}

/* The path MTU that the kernel has now for this peer, or 0: it tells only a connected socket, so one is kept for asking. */
static uint32_t path_mtu(const struct fp_worker *worker, const union fp_socket_address *to)
{
    bool v4 = to->any.sa_family == AF_INET;
    int mtu = 0;
    socklen_t length = sizeof(mtu);

    if (worker->route_fd < 0 || connect(worker->route_fd, &to->any, address_bytes(to)) != 0 ||
        getsockopt(worker->route_fd, v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_MTU : IPV6_MTU, &mtu, &length) != 0)
        return 0;
    return mtu > 0 ? (uint32_t)mtu : 0;
}

/* Is this packet too large for the path, and its sender the one to mend it? Nobody need send less than 1280 bytes over IPv6. */
static bool wants_telling(const uint8_t *packet, size_t bytes, uint32_t inner_mtu)
{
    if (bytes < IPV4_HEADER_BYTES || bytes <= inner_mtu)
        return false;
    return packet[0] >> 4 == 6 ? bytes > IPV6_MTU_MIN_BYTES : packet[6] & IPV4_FLAG_DF;
}

static bool same_addresses(const uint8_t *a, const uint8_t *b)
{
    if (a[0] >> 4 != b[0] >> 4)
        return false;
    return a[0] >> 4 == 6 ? memcmp(a + IPV6_ADDRESSES, b + IPV6_ADDRESSES, 32) == 0 : memcmp(a + IPV4_ADDRESSES, b + IPV4_ADDRESSES, 8) == 0;
}

/* Tell the inner senders of a run about the smaller path; once for neighbours of one source and destination. */
static void tell_smaller_path(struct fp_worker *worker, const struct fp_send *run, uint32_t inner_mtu)
{
    const uint8_t *told = NULL;

    for (size_t offset = 0; offset < run->bytes; offset += run->segment_bytes) {
        const uint8_t *packet = run->data + offset;
        size_t bytes = segment_length(run, offset);

        if (!wants_telling(packet, bytes, inner_mtu) || (told && same_addresses(told, packet)))
            continue;
        told = packet;
        fp_worker_answer(worker, FP_DROP_TOO_BIG, packet, bytes, inner_mtu);
    }
}

static void path_shrank(struct fp_worker *worker, const struct fp_send *run, struct message *message)
{
    uint32_t outer_mtu = path_mtu(worker, &message->to);
    uint32_t headers = message->to.any.sa_family == AF_INET ? OUTER_HEADER_BYTES4 : OUTER_HEADER_BYTES6;

    if (outer_mtu > headers + IPV4_HEADER_BYTES)
        tell_smaller_path(worker, run, outer_mtu - headers);
    send_singly(worker, run, message);
}

/* What follows when the kernel did not take a run. */
static void send_again(struct fp_worker *worker, const struct fp_send *run, struct message *message, int error)
{
    if (buffer_is_full(error) && wait_for_room(worker)) {
        struct msghdr header;

        fill(&header, message, run->data, run->bytes, run->segments > 1 ? run->segment_bytes : 0, run->tos);
        error = send_bounded(worker, &header);
    }
    if (!error) {
        sent(worker, run->hop, run->segments, run->bytes);
    } else if (error == EIO && run->segments > 1) {
        if (worker->out.max_segments > 1)
            fp_worker_work(worker, FP_WORK_GSO_OFF, 1);
        worker->out.max_segments = 1; /* takes effect when a batch is empty */
        worker->out.gso_off_ns = fp_clock_ns(CLOCK_MONOTONIC_COARSE);
        send_singly(worker, run, message);
    } else if (error == EMSGSIZE || (error == EINVAL && run->segments > 1)) {
        path_shrank(worker, run, message);
    } else {
        not_sent(worker, run->hop, FP_DROP_SEND, run->segments, run->bytes);
    }
}

size_t fp_worker_send(struct fp_worker *worker, const struct fp_send *runs, size_t count)
{
    struct message messages[SENDS_PER_CALL];
    struct mmsghdr headers[SENDS_PER_CALL];
    size_t ready = 0;
    int taken;

    while (ready < count && ready < SENDS_PER_CALL && address_of(worker, runs[ready].hop, &messages[ready].to)) {
        const struct fp_send *run = &runs[ready];

        fill(&headers[ready].msg_hdr, &messages[ready], run->data, run->bytes, run->segments > 1 ? run->segment_bytes : 0,
             run->tos);
        ready++;
    }
    if (!ready) {
        not_sent(worker, runs[0].hop, FP_DROP_SEND, runs[0].segments, runs[0].bytes);
        return 1;
    }
    taken = sendmmsg(worker->send_fd, headers, (unsigned)ready, MSG_DONTWAIT);
    if (taken <= 0) {
        send_again(worker, &runs[0], &messages[0], errno);
        return 1;
    }
    for (int i = 0; i < taken; i++)
        sent(worker, runs[i].hop, runs[i].segments, runs[i].bytes);
    return (size_t)taken;
}

void fp_worker_turn_gso_on(struct fp_worker *worker)
{
    struct fp_outward *out = &worker->out;
    uint64_t pause_ns = (uint64_t)worker->settings.gso_retry_ms * (FP_NS_PER_S / 1000);

    if (out->max_segments < worker->settings.max_segments && pause_ns && fp_clock_ns(CLOCK_MONOTONIC_COARSE) - out->gso_off_ns >= pause_ns)
        out->max_segments = worker->settings.max_segments;
}
