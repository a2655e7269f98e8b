/*
 * bench.h: the parts of the benchmark suite that must be in C, called from flanpy/bench through cffi.
 *
 *   proxy.c      a TUN <-> UDP proxy that moves one packet a system call, as flannel's udp backend does: the yardstick
 *   generate.c   UDP sender that outruns a tunnel: UDP_SEGMENT trains, several flows, paced or flat out
 *   receive.c    counts what arrived: loss, duplicates, reordering and one-way delay, exact by sequence number
 *   latency.c    request and response, one outstanding at a time
 *   histogram.c  log-linear histogram of nanoseconds
 *   core.c       timing loops around the pure functions of the C core; naive.c holds the plain version of each
 *
 * None of this is linked into the datapath. Functions return 0 or -errno; nothing here prints or exits. Every loop ends by
 * itself: by count, by deadline, or (proxy) by its stop descriptor.
 */
#ifndef FLANPY_BENCH_H
#define FLANPY_BENCH_H

#include <stddef.h>
#include <stdint.h>

/* ---------------------------------------------------------------------------------------------------------- histogram */

/* 32 steps for each power of two: a percentile is right to 3 %. The last bucket starts at 2^41 ns, 36 minutes. */
#define FB_BUCKETS 1184u

struct fb_histogram {
    uint64_t count;
    uint64_t min_ns;
    uint64_t max_ns;
    uint64_t sum_ns;
    uint64_t buckets[FB_BUCKETS];
};

void fb_histogram_add(struct fb_histogram *histogram, uint64_t ns);
uint64_t fb_histogram_floor(uint32_t bucket); /* least value of a bucket, ns */
/* The value below which `per_mille_ten` ten-thousandths of the values lie (5000: median); 0 when empty. */
uint64_t fb_histogram_quantile(const struct fb_histogram *histogram, uint32_t ten_thousandths);

uint64_t fb_now_ns(void); /* CLOCK_REALTIME: what the kernel stamps packets with, on the one machine that all of this runs on */

/* -------------------------------------------------------------------------------------------------------- probe packet */

/* At the start of each UDP payload, native byte order (sender and receiver are one machine); the rest is filler. */
struct fb_probe {
    uint32_t magic;
    uint32_t flow;
    uint64_t sequence; /* from 0 in each flow, no gap */
    uint64_t sent_ns;  /* CLOCK_REALTIME when its train was built */
};

#define FB_MAGIC 0x666c7079u
#define FB_PROBE_BYTES 24u
#define FB_FLOWS_MAX 64u
#define FB_TRAIN_MAX 63u /* segments of one UDP_SEGMENT send that every kernel takes */

/* ------------------------------------------------------------------------------------------------------------ generate */

struct fb_generate {
    uint32_t magic;         /* tells this run's packets from stragglers of the last one */
    uint32_t payload_bytes; /* FB_PROBE_BYTES .. 1472 */
    uint32_t train;         /* most packets in one send, 1 .. FB_TRAIN_MAX; 1 sends plainly */
    uint32_t reserved;
    uint64_t rate_pps;      /* over all flows; 0: flat out */
    uint64_t duration_ns;   /* stop after this time ... */
    uint64_t packets;       /* ... or after so many packets */
};

struct fb_sent {
    uint64_t packets;
    uint64_t sends;
    uint64_t refused; /* sends that the kernel refused (ENOBUFS, EAGAIN, ...); their packets are not counted as sent */
    uint64_t slipped; /* times the sender was too late to catch up and lowered the rate instead of sending a burst */
    uint64_t elapsed_ns;
};

/*
 * Send from connected UDP sockets, one for each flow, in turn. Paced sends leave as short trains, at most every 100 us.
 * -EINVAL: arguments out of range; other -errno: the first error that is not a full queue.
 */
int fb_generate(const int *sockets, uint32_t flows, const struct fb_generate *what, struct fb_sent *out);

/* ------------------------------------------------------------------------------------------------------------- receive */

struct fb_receive {
    uint32_t magic;
    uint32_t flows;
    uint64_t flow_packets; /* sequence numbers at or above this are foreign; bounds the memory (one bit each) */
    uint64_t quiet_ns;     /* after the stop: end when nothing has come for so long */
    uint64_t deadline_ns;  /* end in any case */
};

struct fb_received {
    uint64_t packets;    /* different ones */
    uint64_t duplicates; /* seen before */
    uint64_t reordered;  /* behind a later one of the same flow (RFC 4737 type-P-reordered) */
    uint64_t foreign;    /* not of this run */
    uint64_t bytes;      /* payload of `packets` */
    uint64_t receives;   /* messages that the kernel handed over (a GRO train is one) */
    uint64_t first_ns;   /* arrival of the first and of the last, CLOCK_REALTIME */
    uint64_t last_ns;
    struct fb_histogram delay; /* from sent_ns to the kernel's receive stamp */
};

/* Ask the kernel for GRO trains, receive stamps and a large buffer on this socket. Refusal of GRO is no error. */
int fb_receive_prepare(int socket, int buffer_bytes);
/*
 * Count until `stop` is readable (the sender is done) and the packets that are still on their way have come.
 * -EINVAL, -ENOMEM, or a -errno of the socket.
 */
int fb_receive(int socket, int stop, const struct fb_receive *what, struct fb_received *out);

/* ------------------------------------------------------------------------------------------------------------- latency */

struct fb_ask {
    uint32_t payload_bytes;
    uint32_t reserved;
    uint64_t interval_ns; /* between the starts of two requests; 0: at once */
    uint64_t timeout_ns;  /* then the request counts as lost */
    uint64_t duration_ns;
    uint64_t requests;    /* stop after so many */
};

struct fb_answers {
    uint64_t requests;
    uint64_t lost;
    struct fb_histogram round_trip;
};

/* Ask from a connected UDP socket, one request outstanding. */
int fb_ask(int socket, const struct fb_ask *what, struct fb_answers *out);
/* Send each datagram back to where it came from until `stop` (an eventfd or pipe) is readable or the deadline has passed. */
int fb_answer(int socket, int stop, uint64_t deadline_ns);

/* ---------------------------------------------------------------------------------------------------------------- core */

enum fb_operation { FB_LOOKUP, FB_SUM, FB_COPY_SUM, FB_SEGMENT, FB_COALESCE, FB_ENCAP, FB_DECAP };

struct fb_core {
    uint32_t operation;    /* enum fb_operation */
    uint32_t naive;        /* 1: the plain version of it */
    uint32_t packet_bytes; /* of an inner packet, 48 .. 1460: 46 of them are a superpacket */
    uint32_t routes;       /* peers in the table, 1 .. 65,536 */
    uint32_t repeated;     /* lookup: always the same destination */
    uint32_t alone;        /* encap, decap: each packet is a batch by itself, with a peer of its own */
    uint64_t seed;
    uint64_t duration_ns;  /* of timed and untimed parts together */
};

/* The median batch. */
struct fb_core_time {
    uint64_t batches; /* that were timed */
    uint64_t packets; /* in each */
    uint64_t bytes;   /* inner, in each */
    double ns;
    uint64_t ticks; /* of the time stamp counter; 0 on machines that have none */
};

/* Repeat one operation for a while. -EINVAL, -ENOMEM, or -EIO when the core did not do to a packet what it should have. */
int fb_core_run(const struct fb_core *what, struct fb_core_time *out);
const char *fb_core_cpu(void); /* which implementation of the checksum the core chose */

/* --------------------------------------------------------------------------------------------------------------- proxy */

/* Network byte order throughout, for it is compared with packets as they are. */
struct fb_proxy_route {
    uint32_t network_be;
    uint32_t mask_be;
    uint32_t hop_be;
    uint16_t port_be;
    uint16_t reserved;
};

struct fb_proxy_counts {
    uint64_t tun_packets; /* read from the TUN device */
    uint64_t udp_packets; /* read from the socket */
    uint64_t no_route;
    uint64_t expired;
    uint64_t refused; /* sends and writes that the kernel refused */
};

/*
 * Carry packets between a TUN device (IFF_NO_PI, no vnet_hdr) and a UDP socket, both non-blocking, until `stop` is readable.
 * Runs in the caller's thread. -ENOMEM, or the -errno that ended it.
 */
int fb_proxy(int tun, int udp, int stop, const struct fb_proxy_route *routes, uint32_t n_routes, uint32_t mtu_bytes,
             struct fb_proxy_counts *counts);

#endif
