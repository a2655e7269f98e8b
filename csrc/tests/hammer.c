/*
 * hammer.c: two datapaths carry numbered packets to each other over loopback while other threads publish tables and read
 * counters without pause. Built with -fsanitize=thread by tests/netns/test_datapath_threads.py; needs no rights.
 *
 *   feeder -> socketpair ("TUN" of a) -> worker a -> UDP 127.0.0.2 -> 127.0.0.3 -> worker b -> socketpair ("TUN" of b) -> feeder
 *
 * Usage: hammer SECONDS THREADS_PER_QUEUE. Exit status 0 when every packet arrived in order and all counters agree.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "worker.h"

#define BURST 32u
#define PACKET_BYTES 60u
#define FRAME_BYTES (FP_VNET_HDR_BYTES + PACKET_BYTES)
#define ROUTES 64u

struct end {
    int tun_inside;  /* the worker's */
    int tun_outside; /* the feeder's */
    int udp;
    struct sockaddr_in address;
    uint32_t subnet; /* host order, /24 */
    struct fp_datapath *datapath;
};

struct hammer {
    struct end a, b;
    int done;
    uint64_t published;
};

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "hammer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void open_end(struct end *end, const char *address, uint32_t subnet)
{
    socklen_t length = sizeof(end->address);
    int pair[2];
    int on = 1;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) != 0)
        die("socketpair");
    end->tun_inside = pair[0];
    end->tun_outside = pair[1];
    end->subnet = subnet;
    end->udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    end->address = (struct sockaddr_in){.sin_family = AF_INET};
    inet_pton(AF_INET, address, &end->address.sin_addr);
    if (end->udp < 0 || bind(end->udp, (struct sockaddr *)(void *)&end->address, sizeof(end->address)) != 0 ||
        getsockname(end->udp, (struct sockaddr *)(void *)&end->address, &length) != 0)
        die("UDP socket");
    setsockopt(end->udp, IPPROTO_UDP, 104 /* UDP_GRO */, &on, sizeof(on));
    setsockopt(end->udp, IPPROTO_IP, IP_RECVTOS, &on, sizeof(on));
}

static void start(struct end *end, uint32_t threads)
{
    struct fp_queue queue = {.tun_fd = end->tun_inside, .n_lanes = 1, .udp_fds = {end->udp}};
    struct fp_settings settings = {.options = FP_OPT_SOURCE_CHECK,
                                   .tunnel_address = end->subnet,
                                   .max_segments = 63,
                                   .spin_us = 20,
                                   .icmp_per_second = 100,
                                   .threads_per_queue = threads};

    errno = -fp_datapath_start(&queue, 1, &settings, &end->datapath);
    if (errno)
        die("start");
}

/* Our subnet, the peer's, and some others that change from table to table. */
static void publish(const struct end *own, const struct end *peer, uint64_t generation)
{
    struct fp_route4 routes[ROUTES + 2];
    struct fp_hop hop = {.address = {.bytes = {[10] = 0xff, [11] = 0xff}}, .port = ntohs(peer->address.sin_port)};
    struct fp_routes all = {.v4 = routes, .hops = &hop, .n_hops = 1, .mtu_bytes = 1472};
    size_t count = 2;
    size_t bytes;
    void *blob;

    memcpy(hop.address.bytes + 12, &peer->address.sin_addr, 4);
    routes[0] = (struct fp_route4){own->subnet, 24, FP_HOP_LOCAL};
    routes[1] = (struct fp_route4){peer->subnet, 24, 0};
    for (uint32_t i = 0; i < generation % ROUTES; i++)
        routes[count++] = (struct fp_route4){0x0b000000u + (i << 8), 24, 0};
    fp_routes_sort(routes, count);
    all.n_v4 = count;
    bytes = fp_table_bytes(&all);
    blob = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!blob || fp_table_build(blob, bytes, generation, &all) != 0)
        die("table");
    errno = -fp_datapath_publish(own->datapath, blob, bytes);
    if (errno)
        die("publish");
    free(blob);
}

static void *publisher(void *argument)
{
    struct hammer *hammer = argument;
    uint64_t generation = 1;

    while (!__atomic_load_n(&hammer->done, __ATOMIC_RELAXED)) {
        generation++;
        publish(&hammer->a, &hammer->b, generation);
        publish(&hammer->b, &hammer->a, generation);
    }
    hammer->published = generation;
    return NULL;
}

static struct fp_address address_of(const struct end *end)
{
    struct fp_address address = {.bytes = {[10] = 0xff, [11] = 0xff}};

    memcpy(address.bytes + 12, &end->address.sin_addr, 4);
    return address;
}

/* What `own` has counted for its peer. */
static struct fp_peer_count counted(const struct end *own, const struct end *peer)
{
    struct fp_address address = address_of(peer);
    struct fp_peer_count count = {.address = {0}};

    fp_datapath_peers(own->datapath, &address, 1, &count);
    return count;
}

static void *reader(void *argument)
{
    struct hammer *hammer = argument;
    uint64_t before = 0, sent = 0;
    struct fp_stats stats;

    while (!__atomic_load_n(&hammer->done, __ATOMIC_RELAXED)) {
        fp_datapath_stats(hammer->a.datapath, 0, &stats);
        if (stats.verdicts.by[FP_ENCAPSULATED].packets < before) {
            fprintf(stderr, "hammer: a counter went backwards\n");
            exit(1);
        }
        before = stats.verdicts.by[FP_ENCAPSULATED].packets;
        if (counted(&hammer->a, &hammer->b).sent.packets < sent) {
            fprintf(stderr, "hammer: a table has taken figures of a peer back\n");
            exit(1);
        }
        sent = counted(&hammer->a, &hammer->b).sent.packets;
    }
    return NULL;
}

/* An ICMP echo request with its number behind the header; checksum of the IP header only. */
static void make_frame(uint8_t *frame, uint32_t source, uint32_t destination, uint32_t number)
{
    uint8_t *packet = frame + FP_VNET_HDR_BYTES;
    uint32_t addresses[2] = {htonl(source), htonl(destination)};
    uint32_t sum = 0;

    memset(frame, 0, FRAME_BYTES);
    packet[0] = 0x45;
    packet[3] = PACKET_BYTES;
    packet[8] = 64;
    packet[9] = 1;
    packet[20] = 8;
    memcpy(packet + 12, addresses, sizeof(addresses));
    memcpy(packet + 28, &number, sizeof(number));
    for (size_t i = 0; i < 20; i += 2)
        sum += (uint32_t)(packet[i] << 8 | packet[i + 1]);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = ~((sum >> 16) + sum);
    packet[10] = (uint8_t)(sum >> 8);
    packet[11] = (uint8_t)sum;
}

static void expect(const struct end *end, uint32_t number)
{
    struct pollfd polled = {.fd = end->tun_outside, .events = POLLIN};
    uint8_t frame[FP_FRAME_BYTES_MAX];
    uint32_t seen;

    if (poll(&polled, 1, 5000) != 1)
        die("a packet did not arrive within 5 s");
    if (read(end->tun_outside, frame, sizeof(frame)) != (ssize_t)FRAME_BYTES)
        die("read");
    memcpy(&seen, frame + FP_VNET_HDR_BYTES + 28, sizeof(seen));
    if (seen != number) {
        fprintf(stderr, "hammer: packet %u came instead of %u\n", seen, number);
        exit(1);
    }
}

static uint32_t feed(struct hammer *hammer, double seconds)
{
    struct timespec start_time, now;
    uint32_t number = 0;
    uint8_t frame[FRAME_BYTES];

    clock_gettime(CLOCK_MONOTONIC, &start_time);
    do {
        for (uint32_t i = 0; i < BURST; i++) {
            make_frame(frame, hammer->a.subnet + 2, hammer->b.subnet + 2, number + i);
            if (write(hammer->a.tun_outside, frame, sizeof(frame)) != (ssize_t)sizeof(frame))
                die("write");
            make_frame(frame, hammer->b.subnet + 2, hammer->a.subnet + 2, number + i);
            if (write(hammer->b.tun_outside, frame, sizeof(frame)) != (ssize_t)sizeof(frame))
                die("write");
        }
        for (uint32_t i = 0; i < BURST; i++) {
            expect(&hammer->b, number + i);
            expect(&hammer->a, number + i);
        }
        number += BURST;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - start_time.tv_sec) + (double)(now.tv_nsec - start_time.tv_nsec) / 1e9 < seconds);
    return number;
}

int main(int argc, char **argv)
{
    struct hammer hammer = {0};
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    uint32_t threads = argc > 2 ? (uint32_t)atoi(argv[2]) : 1;
    pthread_t publishing, reading;
    struct fp_peer_count peer;
    struct fp_stats stats;
    uint32_t fed;

    open_end(&hammer.a, "127.0.0.2", 0x0a050100);
    open_end(&hammer.b, "127.0.0.3", 0x0a050200);
    start(&hammer.a, threads);
    start(&hammer.b, threads);
    publish(&hammer.a, &hammer.b, 1);
    publish(&hammer.b, &hammer.a, 1);
    if (pthread_create(&publishing, NULL, publisher, &hammer) != 0 || pthread_create(&reading, NULL, reader, &hammer) != 0)
        die("pthread_create");
    fed = feed(&hammer, seconds);
    __atomic_store_n(&hammer.done, 1, __ATOMIC_RELAXED);
    pthread_join(publishing, NULL);
    pthread_join(reading, NULL);
    fp_datapath_stats(hammer.b.datapath, 0, &stats);
    peer = counted(&hammer.b, &hammer.a);
    fp_datapath_stop(hammer.a.datapath);
    fp_datapath_stop(hammer.b.datapath);
    printf("%u packets each way, %llu tables\n", fed, (unsigned long long)hammer.published);
    return stats.verdicts.by[FP_DECAPSULATED].packets == fed && stats.verdicts.by[FP_ENCAPSULATED].packets == fed &&
                   stats.generation == hammer.published && fed && hammer.published > 1 && peer.sent.packets == fed &&
                   peer.received.packets == fed && peer.received.bytes == (uint64_t)fed * PACKET_BYTES
               ? 0
               : 1;
}
