/*
 * worker_out.c: the outward direction of a worker: TUN frames in, UDP sends out. What a packet becomes is decided by encap.c;
 * here are the system calls and what follows from their errors.
 *
 *   read until EAGAIN or the batch bound -> fp_encap_frame -> (FP_FULL or end of batch) sendmmsg of all runs
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

#define FRAMES_PER_TURN 64u   /* keeps a flood from the pods from starving the other direction, tables and stop */
#define SENDS_PER_CALL 16u    /* messages of one sendmmsg; bounds the arrays on the stack */
#define WAITS_PER_TURN 8u     /* of 1 ms each: a full socket holds this worker no longer, however many runs there are */
#define FRAME_LEAD 54u        /* the vnet_hdr's 10 bytes then end on a cache line, where the packet begins */
#define OUTER_HEADER_BYTES 28u
#define IPV4_HEADER_BYTES 20u
#define IPV4_FLAG_DF 0x40u

/* One message of a sendmmsg with all that it points to. */
struct message {
    struct sockaddr_in to;
    struct iovec iov;
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int))];
    } control;
};

static bool address_of(const struct fp_worker *worker, uint32_t hop_index, struct sockaddr_in *to)
{
    const struct fp_hop *hop = fp_table_hop(worker->context.table, hop_index);

    if (!hop)
        return false;
    memset(to, 0, sizeof(*to));
    to->sin_family = AF_INET;
    to->sin_port = htons(hop->port);
    memcpy(&to->sin_addr, hop->address.bytes + 12, sizeof(to->sin_addr));
    return true;
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
    header->msg_namelen = sizeof(message->to);
    header->msg_iov = &message->iov;
    header->msg_iovlen = 1;
    header->msg_control = message->control.bytes;
    if (segment_bytes)
        add_control(header, IPPROTO_UDP, UDP_SEGMENT, &segment_bytes, sizeof(segment_bytes));
    if (tos)
        add_control(header, IPPROTO_IP, IP_TOS, &tos_value, sizeof(tos_value));
    if (!header->msg_controllen)
        header->msg_control = NULL;
}

static void sent(struct fp_worker *worker, uint64_t packets, uint64_t bytes)
{
    fp_worker_work(worker, FP_WORK_UDP_SENDS, 1);
    fp_worker_work(worker, FP_WORK_UDP_SENT_SEGMENTS, packets);
    fp_worker_verdict(worker, FP_ENCAPSULATED, packets, bytes);
}

static bool buffer_is_full(int error)
{
    return error == EAGAIN || error == ENOBUFS || error == ENOMEM || error == EINTR;
}

/* False when this turn has waited long enough already. */
static bool wait_for_room(struct fp_worker *worker)
{
    struct pollfd socket = {.fd = worker->queue.udp_fd, .events = POLLOUT};

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
        if (sendmsg(worker->queue.udp_fd, header, MSG_DONTWAIT) >= 0)
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
            sent(worker, 1, bytes);
        else
            fp_worker_verdict(worker, error == EMSGSIZE ? FP_DROP_TOO_BIG : FP_DROP_SEND, 1, bytes);
    }
}

/* The path MTU that the kernel has now for this peer, or 0: it tells only a connected socket, so one is kept for asking. */
static uint32_t path_mtu(const struct fp_worker *worker, const struct sockaddr_in *to)
{
    int mtu = 0;
    socklen_t length = sizeof(mtu);

    if (worker->route_fd < 0 || connect(worker->route_fd, (const struct sockaddr *)(const void *)to, sizeof(*to)) != 0 ||
        getsockopt(worker->route_fd, IPPROTO_IP, IP_MTU, &mtu, &length) != 0)
        return 0;
    return mtu > 0 ? (uint32_t)mtu : 0;
}

/* Tell the inner senders of a run about the smaller path; once for neighbours of one source and destination. */
static void tell_smaller_path(struct fp_worker *worker, const struct fp_send *run, uint32_t inner_mtu)
{
    uint8_t told[8] = {0};

    for (size_t offset = 0; offset < run->bytes; offset += run->segment_bytes) {
        const uint8_t *packet = run->data + offset;
        size_t bytes = segment_length(run, offset);

        if (bytes < IPV4_HEADER_BYTES || bytes <= inner_mtu || !(packet[6] & IPV4_FLAG_DF))
            continue;
        if (memcmp(told, packet + 12, sizeof(told)) == 0)
            continue;
        memcpy(told, packet + 12, sizeof(told));
        fp_worker_answer(worker, FP_DROP_TOO_BIG, packet, bytes, inner_mtu);
    }
}

static void path_shrank(struct fp_worker *worker, const struct fp_send *run, struct message *message)
{
    uint32_t outer_mtu = path_mtu(worker, &message->to);

    if (outer_mtu > OUTER_HEADER_BYTES + IPV4_HEADER_BYTES)
        tell_smaller_path(worker, run, outer_mtu - OUTER_HEADER_BYTES);
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
        sent(worker, run->segments, run->bytes);
    } else if (error == EIO && run->segments > 1) {
        if (worker->out.max_segments > 1)
            fp_worker_work(worker, FP_WORK_GSO_OFF, 1);
        worker->out.max_segments = 1; /* takes effect at the end of this flush */
        worker->out.gso_off_ns = fp_clock_ns(CLOCK_MONOTONIC_COARSE);
        send_singly(worker, run, message);
    } else if (error == EMSGSIZE || (error == EINVAL && run->segments > 1)) {
        path_shrank(worker, run, message);
    } else {
        fp_worker_verdict(worker, FP_DROP_SEND, run->segments, run->bytes);
    }
}

/* Send runs[0..count) in one call as far as the kernel takes them; returns how many are dealt with, at least one. */
static size_t send_some(struct fp_worker *worker, const struct fp_send *runs, size_t count)
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
        fp_worker_verdict(worker, FP_DROP_SEND, runs[0].segments, runs[0].bytes);
        return 1;
    }
    taken = sendmmsg(worker->queue.udp_fd, headers, (unsigned)ready, MSG_DONTWAIT);
    if (taken <= 0) {
        send_again(worker, &runs[0], &messages[0], errno);
        return 1;
    }
    for (int i = 0; i < taken; i++)
        sent(worker, runs[i].segments, runs[i].bytes);
    return (size_t)taken;
}

/* UDP_SEGMENT again, once it has been off for long enough. */
static void turn_gso_on(struct fp_worker *worker)
{
    struct fp_outward *out = &worker->out;
    uint64_t pause_ns = (uint64_t)worker->settings.gso_retry_ms * (FP_NS_PER_S / 1000);

    if (pause_ns && fp_clock_ns(CLOCK_MONOTONIC_COARSE) - out->gso_off_ns >= pause_ns)
        out->max_segments = worker->settings.max_segments;
}

/* Send all runs and make the encapsulator empty. */
static void flush(struct fp_worker *worker)
{
    struct fp_outward *out = &worker->out;
    const struct fp_send *runs;
    size_t count = fp_encap_sends(out->encap, &runs);
    uint32_t max_segments = out->max_segments;

    for (size_t done = 0; done < count;)
        done += send_some(worker, runs + done, count - done);
    if (out->max_segments < worker->settings.max_segments)
        turn_gso_on(worker);
    if (out->max_segments != max_segments)
        out->encap = fp_encap_init(out->encap_memory, out->max_segments);
    else
        fp_encap_reset(out->encap);
}

static void take_frame(struct fp_worker *worker, uint8_t *frame, size_t bytes)
{
    enum fp_verdict verdict = fp_encap_frame(worker->out.encap, &worker->context, frame, bytes);

    if (verdict == FP_FULL) {
        flush(worker);
        verdict = fp_encap_frame(worker->out.encap, &worker->context, frame, bytes);
    }
    if (verdict != FP_ENCAPSULATED && verdict != FP_FULL && bytes > FP_VNET_HDR_BYTES)
        fp_worker_answer(worker, verdict, frame + FP_VNET_HDR_BYTES, bytes - FP_VNET_HDR_BYTES, worker->context.mtu_bytes);
}

bool fp_outward_turn(struct fp_worker *worker)
{
    uint8_t *frame = worker->out.frame + FRAME_LEAD;
    unsigned frames = 0;

    worker->out.waits_left = WAITS_PER_TURN;
    while (frames < FRAMES_PER_TURN) {
        ssize_t bytes = read(worker->queue.tun_fd, frame, FP_FRAME_BYTES_MAX);

        if (bytes <= 0) {
            if (bytes < 0 && fp_worker_tun_is_gone(errno))
                fp_worker_fail(worker, errno);
            break;
        }
        take_frame(worker, frame, (size_t)bytes);
        frames++;
    }
    if (!frames)
        return false;
    fp_worker_work(worker, FP_WORK_TUN_READS, frames);
    flush(worker);
    return true;
}

static size_t rounded(size_t bytes)
{
    return (bytes + FP_CACHE_LINE - 1) / FP_CACHE_LINE * FP_CACHE_LINE;
}

int fp_outward_init(struct fp_worker *worker)
{
    struct fp_outward *out = &worker->out;

    out->max_segments = worker->settings.max_segments;
    out->frame = aligned_alloc(FP_CACHE_LINE, rounded(FRAME_LEAD + FP_FRAME_BYTES_MAX));
    out->encap_memory = aligned_alloc(FP_CACHE_LINE, rounded(fp_encap_bytes()));
    if (!out->frame || !out->encap_memory)
        return -ENOMEM;
    out->encap = fp_encap_init(out->encap_memory, out->max_segments);
    return 0;
}

void fp_outward_free(struct fp_worker *worker)
{
    free(worker->out.frame);
    free(worker->out.encap_memory);
}
