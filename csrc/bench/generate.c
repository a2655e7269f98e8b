/*
 * generate.c: sends numbered UDP packets fast enough to overrun a tunnel, or at a given rate.
 *
 * One system call carries a train of equal packets (UDP_SEGMENT), taken from the flows in turn. A paced sender wakes at most every
 * 100 us, sends what is due, and sleeps: on a machine with two CPUs a busy wait would take from the tunnel under test the very
 * CPU that it needs. A sender that has fallen behind (it was off the CPU) does not send the arrears as one
 * burst, for that would measure the burst: it lets the schedule slip, and the rate that counts is what was really sent.
 */
#include "bench.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif

#define PAYLOAD_MAX 1472u
#define TICK_NS 100000u
#define ARREARS_NS 2000000u /* more than this behind: slip */

struct sender {
    const int *sockets;
    uint32_t flows;
    uint32_t flow; /* whose turn it is */
    const struct fb_generate *what;
    struct fb_sent *out;
    uint64_t next[FB_FLOWS_MAX]; /* sequence number of each flow */
    uint8_t payload[FB_TRAIN_MAX * PAYLOAD_MAX];
};

static void write_probes(struct sender *sender, uint32_t packets, uint64_t now_ns) {
    struct fb_probe probe = {.magic = sender->what->magic, .flow = sender->flow, .sent_ns = now_ns};
    for (uint32_t i = 0; i < packets; i++) {
        probe.sequence = sender->next[sender->flow] + i;
        memcpy(sender->payload + (size_t)i * sender->what->payload_bytes, &probe, sizeof probe);
    }
}

/* One send of `packets` packets of the flow whose turn it is. 0, or -errno of an error that is not a full queue. */
static int send_train(struct sender *sender, uint32_t packets) {
    write_probes(sender, packets, fb_now_ns());
    struct iovec data = {.iov_base = sender->payload, .iov_len = (size_t)packets * sender->what->payload_bytes};
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(sizeof(uint16_t))];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (packets > 1) {
        uint16_t segment = (uint16_t)sender->what->payload_bytes;
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_UDP;
        header->cmsg_type = UDP_SEGMENT;
        header->cmsg_len = CMSG_LEN(sizeof segment);
        memcpy(CMSG_DATA(header), &segment, sizeof segment);
    }
    ssize_t sent = sendmsg(sender->sockets[sender->flow], &message, 0);
    sender->out->sends++;
    if (sent < 0) {
        sender->out->refused++;
        return errno == ENOBUFS || errno == EAGAIN || errno == EINTR || errno == ECONNREFUSED ? 0 : -errno;
    }
    sender->next[sender->flow] += packets;
    sender->out->packets += packets;
    sender->flow = sender->flow + 1 < sender->flows ? sender->flow + 1 : 0;
    return 0;
}

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t ns) {
    struct timespec until = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

/* Packets that may leave now by the schedule that started at *start_ns; moves the start when the arrears are too large. */
static uint64_t due(struct sender *sender, uint64_t *start_ns, uint64_t now_ns) {
    const uint64_t rate = sender->what->rate_pps;
    if (rate == 0)
        return FB_TRAIN_MAX;
    uint64_t planned = (uint64_t)((double)(now_ns - *start_ns) * (double)rate / 1e9) + 1;
    uint64_t behind = planned > sender->out->packets ? planned - sender->out->packets : 0;
    uint64_t most = (uint64_t)((double)ARREARS_NS * (double)rate / 1e9) + 1;
    if (behind > most) {
        *start_ns += (uint64_t)((double)(behind - most) * 1e9 / (double)rate);
        sender->out->slipped++;
        behind = most;
    }
    return behind;
}

static int send_due(struct sender *sender, uint64_t packets) {
    int error = 0;
    uint64_t sends = 0;
    while (packets > 0 && error == 0 && sends++ < packets + 1000u) { /* a refused send is not repeated for ever */
        uint64_t left = sender->what->packets - sender->out->packets;
        uint64_t train = packets < sender->what->train ? packets : sender->what->train;
        if (left == 0)
            break;
        train = train < left ? train : left;
        uint64_t before = sender->out->packets;
        error = send_train(sender, (uint32_t)train);
        packets -= sender->out->packets > before ? train : 1;
    }
    return error;
}

static int run(struct sender *sender) {
    const struct fb_generate *what = sender->what;
    const uint64_t begin_ns = clock_ns();
    uint64_t start_ns = begin_ns, now_ns = begin_ns;
    int error = 0;
    while (error == 0 && now_ns - begin_ns < what->duration_ns && sender->out->packets < what->packets) {
        error = send_due(sender, due(sender, &start_ns, now_ns));
        if (what->rate_pps != 0) {
            uint64_t next_ns = start_ns + (uint64_t)((double)sender->out->packets * 1e9 / (double)what->rate_pps);
            sleep_until(next_ns > now_ns + TICK_NS ? next_ns : now_ns + TICK_NS);
        }
        now_ns = clock_ns();
    }
    sender->out->elapsed_ns = now_ns - begin_ns;
    return error;
}

int fb_generate(const int *sockets, uint32_t flows, const struct fb_generate *what, struct fb_sent *out) {
    static_assert(sizeof(struct fb_probe) == FB_PROBE_BYTES, "probe layout");
    memset(out, 0, sizeof *out);
    if (flows < 1 || flows > FB_FLOWS_MAX || what->train < 1 || what->train > FB_TRAIN_MAX)
        return -EINVAL;
    /* A train must fit a UDP datagram's length field, whatever is cut from it later. */
    if (what->payload_bytes < FB_PROBE_BYTES || what->payload_bytes > PAYLOAD_MAX || what->payload_bytes * what->train > 65507u)
        return -EINVAL;
    struct sender *sender = calloc(1, sizeof *sender);
    if (sender == NULL)
        return -ENOMEM;
    sender->sockets = sockets;
    sender->flows = flows;
    sender->what = what;
    sender->out = out;
    for (size_t i = 0; i < sizeof sender->payload; i++)
        sender->payload[i] = (uint8_t)i;
    prctl(PR_SET_TIMERSLACK, 1000ul); /* of this thread: wake when asked, not 50 us later */
    int error = run(sender);
    free(sender);
    return error;
}
