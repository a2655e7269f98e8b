/*
 * receive.c: takes numbered UDP packets and counts loss, duplicates, reordering and delay exactly.
 *
 * Each flow has one bit for each sequence number, so a duplicate is a bit that is set already and the loss is what the sender sent less
 * the bits set. The receiver sleeps 200 us between batches instead of being woken for each packet (the socket's buffer
 * holds tens of milliseconds), so that it takes little CPU from the tunnel under test; the delay does not suffer, for the
 * kernel stamps a packet when it arrives.
 */
#include "bench.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif

#define MESSAGES 32u
#define MESSAGE_BYTES 65536u
#define CONTROL_BYTES 128u
#define NAP_NS 200000l

struct flow {
    uint64_t next; /* one above the highest sequence number seen */
    uint8_t *seen; /* one bit each */
};

struct receiver {
    const struct fb_receive *what;
    struct fb_received *out;
    struct flow flows[FB_FLOWS_MAX];
    struct mmsghdr messages[MESSAGES];
    struct iovec iov[MESSAGES];
    union {
        struct cmsghdr align;
        uint8_t bytes[CONTROL_BYTES];
    } control[MESSAGES];
    uint8_t *data;
};

int fb_receive_prepare(int socket, int buffer_bytes) {
    const int on = 1;
    (void)setsockopt(socket, SOL_UDP, UDP_GRO, &on, sizeof on); /* without it trains arrive one by one */
    if (setsockopt(socket, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) < 0)
        return -errno;
    if (setsockopt(socket, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes, sizeof buffer_bytes) < 0 &&
        setsockopt(socket, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes) < 0)
        return -errno;
    return 0;
}

static void take_probe(struct receiver *receiver, const uint8_t *data, size_t bytes, uint64_t arrived_ns) {
    struct fb_received *out = receiver->out;
    struct fb_probe probe;
    if (bytes < sizeof probe) {
        out->foreign++;
        return;
    }
    memcpy(&probe, data, sizeof probe);
    /* flow and sequence index memory: both are held against their bounds here. */
    if (probe.magic != receiver->what->magic || probe.flow >= receiver->what->flows ||
        probe.sequence >= receiver->what->flow_packets) {
        out->foreign++;
        return;
    }
    struct flow *flow = &receiver->flows[probe.flow];
    uint8_t *seen = &flow->seen[probe.sequence >> 3];
    const uint8_t bit = (uint8_t)(1u << (probe.sequence & 7u));
    if (*seen & bit) {
        out->duplicates++;
        return;
    }
    *seen |= bit;
    if (probe.sequence < flow->next)
        out->reordered++;
    else
        flow->next = probe.sequence + 1;
    out->packets++;
    out->bytes += bytes;
    fb_histogram_add(&out->delay, arrived_ns > probe.sent_ns ? arrived_ns - probe.sent_ns : 0);
}

/* Size of the pieces of a GRO train (0: it is one packet) and the kernel's receive stamp, from the control messages. */
static void read_control(struct msghdr *header, size_t *segment, uint64_t *arrived_ns) {
    for (struct cmsghdr *item = CMSG_FIRSTHDR(header); item != NULL; item = CMSG_NXTHDR(header, item)) {
        if (item->cmsg_level == SOL_UDP && item->cmsg_type == UDP_GRO) {
            int size;
            memcpy(&size, CMSG_DATA(item), sizeof size);
            *segment = size > 0 ? (size_t)size : 0;
        } else if (item->cmsg_level == SOL_SOCKET && item->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(item), sizeof stamp);
            *arrived_ns = (uint64_t)stamp.tv_sec * 1000000000ull + (uint64_t)stamp.tv_nsec;
        }
    }
}

static void take_message(struct receiver *receiver, struct mmsghdr *message, const uint8_t *data, uint64_t now_ns) {
    size_t segment = 0;
    uint64_t arrived_ns = now_ns;
    read_control(&message->msg_hdr, &segment, &arrived_ns);
    const size_t bytes = message->msg_len;
    receiver->out->receives++;
    if (receiver->out->first_ns == 0)
        receiver->out->first_ns = arrived_ns;
    receiver->out->last_ns = arrived_ns;
    if (segment == 0 || segment > bytes)
        segment = bytes;
    size_t at = 0;
    do {
        size_t piece = bytes - at < segment ? bytes - at : segment;
        take_probe(receiver, data + at, piece, arrived_ns);
        at += piece;
    } while (at < bytes);
}

/* Drain what is there, a bounded number of batches. Messages taken, or -errno. */
static int drain(struct receiver *receiver, int socket) {
    int total = 0;
    for (int batch = 0; batch < 256; batch++) {
        for (uint32_t i = 0; i < MESSAGES; i++)
            receiver->messages[i].msg_hdr.msg_controllen = CONTROL_BYTES;
        int got = recvmmsg(socket, receiver->messages, MESSAGES, MSG_DONTWAIT, NULL);
        if (got < 0)
            return errno == EAGAIN || errno == EINTR || errno == ECONNREFUSED ? total : -errno;
        const uint64_t now_ns = fb_now_ns();
        for (uint32_t i = 0; i < (uint32_t)got; i++)
            take_message(receiver, &receiver->messages[i], receiver->data + (size_t)i * MESSAGE_BYTES, now_ns);
        total += got;
        if ((uint32_t)got < MESSAGES)
            break;
    }
    return total;
}

/* Sleep for a moment; whether the sender is done. */
static bool nap(int stop, bool stopped)
{
    const struct timespec moment = {.tv_nsec = NAP_NS};
    struct pollfd wait = {.fd = stop, .events = POLLIN};
    return ppoll(&wait, stopped ? 0 : 1, &moment, NULL) > 0 || stopped;
}

static int run(struct receiver *receiver, int socket, int stop)
{
    const struct fb_receive *what = receiver->what;
    const uint64_t begin_ns = fb_now_ns();
    uint64_t quiet_since_ns = begin_ns;
    bool stopped = false;
    for (;;) {
        int got = drain(receiver, socket);
        if (got < 0)
            return got;
        const uint64_t now_ns = fb_now_ns();
        if (got > 0 || !stopped)
            quiet_since_ns = now_ns;
        if (now_ns - begin_ns >= what->deadline_ns || now_ns - quiet_since_ns >= what->quiet_ns)
            return 0;
        stopped = nap(stop, stopped);
    }
}

static void release(struct receiver *receiver) {
    for (uint32_t i = 0; i < FB_FLOWS_MAX; i++)
        free(receiver->flows[i].seen);
    free(receiver->data);
    free(receiver);
}

static struct receiver *acquire(const struct fb_receive *what, struct fb_received *out) {
    struct receiver *receiver = calloc(1, sizeof *receiver);
    if (receiver == NULL)
        return NULL;
    receiver->what = what;
    receiver->out = out;
    receiver->data = malloc((size_t)MESSAGES * MESSAGE_BYTES);
    bool complete = receiver->data != NULL;
    for (uint32_t i = 0; i < what->flows; i++) {
        receiver->flows[i].seen = calloc(1, what->flow_packets / 8u + 1u);
        complete = complete && receiver->flows[i].seen != NULL;
    }
    if (!complete) {
        release(receiver);
        return NULL;
    }
    for (uint32_t i = 0; i < MESSAGES; i++) {
        receiver->iov[i] = (struct iovec){.iov_base = receiver->data + (size_t)i * MESSAGE_BYTES, .iov_len = MESSAGE_BYTES};
        receiver->messages[i].msg_hdr.msg_iov = &receiver->iov[i];
        receiver->messages[i].msg_hdr.msg_iovlen = 1;
        receiver->messages[i].msg_hdr.msg_control = receiver->control[i].bytes;
    }
    return receiver;
}

int fb_receive(int socket, int stop, const struct fb_receive *what, struct fb_received *out) {
    memset(out, 0, sizeof *out);
    /* One bit a packet: 2^32 packets of one flow are half a GiB, more than any run sends. */
    if (what->flows < 1 || what->flows > FB_FLOWS_MAX || what->flow_packets > UINT32_MAX)
        return -EINVAL;
    struct receiver *receiver = acquire(what, out);
    if (receiver == NULL)
        return -ENOMEM;
    prctl(PR_SET_TIMERSLACK, 1000ul);
    int error = run(receiver, socket, stop);
    release(receiver);
    return error;
}
