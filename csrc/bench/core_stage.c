/*
 * core_stage.c: makes tables and packets for the timing loops; nothing here is timed.
 *
 * Peers have the /24 subnets of 10.0.0.0/8, each with a hop of its own; our own subnet is 192.168.0.0/24. Packets
 * between a peer and us are what a TUN device or a peer would hand over: checksums right, or left to the offload.
 */
#include "core_stage.h"

#include "../checksum.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdlib.h>

#define PEERS_BASE 0x0a000000u /* 10.0.0.0 */
#define PEERS_MAX 65536u
#define HOPS_BASE 0xac100000u  /* 172.16.0.0 */
#define OURS 0xc0a80001u       /* 192.168.0.1 */

uint64_t fb_random(struct fb_stage *stage)
{
    stage->random ^= stage->random << 13; /* xorshift64 */
    stage->random ^= stage->random >> 7;
    stage->random ^= stage->random << 17;
    return stage->random;
}

static uint32_t subnet_of(uint32_t hop)
{
    return PEERS_BASE + (hop << 8);
}

uint32_t fb_stage_peer(struct fb_stage *stage, uint32_t *hop)
{
    *hop = (uint32_t)(fb_random(stage) % stage->n_hops);
    return subnet_of(*hop) + 1 + (uint32_t)(fb_random(stage) % 250);
}

struct fp_address fb_stage_address(uint32_t hop)
{
    struct fp_address address = {{[10] = 0xff, [11] = 0xff}};
    uint32_t address_be = htonl(HOPS_BASE + hop);
    memcpy(address.bytes + 12, &address_be, sizeof address_be);
    return address;
}

static void shuffle(struct fb_stage *stage, struct fp_route4 *routes, size_t count)
{
    for (size_t i = count - 1; i > 0; i--) {
        size_t other = fb_random(stage) % (i + 1);
        struct fp_route4 swapped = routes[i];
        routes[i] = routes[other];
        routes[other] = swapped;
    }
}

/* Sorted as the core wants them, and shuffled for the plain list. */
static void make_routes(struct fb_stage *stage)
{
    for (uint32_t i = 0; i + 1 < stage->n_routes; i++) {
        stage->routes[i] = (struct fp_route4){.prefix = subnet_of(i), .prefix_len = 24, .hop = i};
        stage->hops[i] = (struct fp_hop){.address = fb_stage_address(i), .port = 8285};
    }
    stage->routes[stage->n_routes - 1] = (struct fp_route4){.prefix = OURS & ~0xffu, .prefix_len = 24, .hop = FP_HOP_LOCAL};
    memcpy(stage->shuffled, stage->routes, stage->n_routes * sizeof *stage->routes);
    shuffle(stage, stage->shuffled, stage->n_routes);
}

static int make_table(struct fb_stage *stage)
{
    const struct fp_routes routes = {.v4 = stage->routes, .n_v4 = stage->n_routes, .hops = stage->hops, .n_hops = stage->n_hops};
    size_t bytes = fp_table_bytes(&routes);
    if (bytes == 0)
        return -EINVAL;
    stage->table = aligned_alloc(64, (bytes + 63u) & ~(size_t)63u);
    if (stage->table == NULL)
        return -ENOMEM;
    return fp_table_build(stage->table, bytes, 1, &routes);
}

static void *aligned(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63u) & ~(size_t)63u);
    if (memory != NULL)
        memset(memory, 0, bytes);
    return memory;
}

int fb_stage_prepare(struct fb_stage *stage, const struct fb_core *what)
{
    if (what->routes < 1 || what->routes > PEERS_MAX || what->packet_bytes < 48 || what->packet_bytes > 1460)
        return -EINVAL;
    if (what->alone && what->operation != FB_ENCAP && what->operation != FB_DECAP)
        return -EINVAL;
    stage->random = what->seed | 1;
    stage->n_routes = what->routes + 1u;
    stage->n_hops = what->routes;
    stage->routes = calloc(stage->n_routes, sizeof *stage->routes);
    stage->shuffled = calloc(stage->n_routes, sizeof *stage->shuffled);
    stage->hops = calloc(stage->n_hops, sizeof *stage->hops);
    stage->pattern = aligned(FB_SLOT_BYTES);
    stage->work = aligned((size_t)FB_BATCH * 2048u > 2u * FB_SLOT_BYTES ? (size_t)FB_BATCH * 2048u : 2u * FB_SLOT_BYTES);
    stage->out = aligned((size_t)FB_BATCH * 2048u);
    void *encap = aligned(fp_encap_bytes()), *decap = aligned(fp_decap_bytes());
    if (encap != NULL)
        stage->encap = fp_encap_init(encap, 63);
    if (decap != NULL)
        stage->decap = fp_decap_init(decap);
    if (!stage->routes || !stage->shuffled || !stage->hops || !stage->pattern || !stage->work || !stage->out || !encap || !decap)
        return -ENOMEM;
    make_routes(stage);
    int error = make_table(stage);
    stage->list = (struct fb_naive_list){.routes = stage->shuffled, .hops = stage->hops, .n_routes = stage->n_routes};
    stage->context = (struct fp_context){.table = stage->table, .counters = &stage->counters, .mtu_bytes = 1472,
                                         .options = FP_OPT_SOURCE_CHECK, .tunnel_address = OURS & ~0xffu};
    return error;
}

void fb_stage_release(struct fb_stage *stage)
{
    free(stage->routes);
    free(stage->shuffled);
    free(stage->hops);
    free(stage->table);
    free(stage->encap);
    free(stage->decap);
    free(stage->pattern);
    free(stage->work);
    free(stage->out);
}

static struct iphdr ip_header(uint32_t source, uint32_t destination, uint8_t protocol, size_t bytes)
{
    struct iphdr ip = {.version = 4, .ihl = 5, .tot_len = htons((uint16_t)bytes), .id = htons(1), .frag_off = htons(FP_IP_DF),
                       .ttl = 64, .protocol = protocol, .saddr = htonl(source), .daddr = htonl(destination)};
    ip.check = (uint16_t)~fp_fold(fp_sum(&ip, sizeof ip, 0));
    return ip;
}

static uint16_t pseudo(const struct iphdr *ip, size_t transport_bytes)
{
    uint16_t words[2] = {htons(ip->protocol), htons((uint16_t)transport_bytes)};
    return fp_fold(fp_sum(words, sizeof words, fp_sum(&ip->saddr, 8, 0)));
}

static void fill(struct fb_stage *stage, uint8_t *to, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        to[i] = (uint8_t)fb_random(stage);
}

static void put_udp(struct fb_stage *stage, uint8_t *to, const struct iphdr *ip, size_t bytes)
{
    struct udphdr udp = {.source = htons(20000), .dest = htons(9009), .len = htons((uint16_t)(bytes - sizeof *ip))};
    memcpy(to, ip, sizeof *ip);
    fill(stage, to + sizeof *ip + sizeof udp, bytes - sizeof *ip - sizeof udp);
    memcpy(to + sizeof *ip, &udp, sizeof udp);
}

void fb_stage_udp_frame(struct fb_stage *stage, uint32_t peer, uint32_t packet_bytes)
{
    struct iphdr ip = ip_header(OURS, peer, IPPROTO_UDP, packet_bytes);
    struct fp_vnet vnet = {.flags = FP_VNET_NEEDS_CSUM, .csum_start = sizeof ip, .csum_offset = FP_UDP_CHECK};
    uint16_t partial = pseudo(&ip, packet_bytes - sizeof ip);
    memcpy(stage->pattern, &vnet, sizeof vnet);
    put_udp(stage, stage->pattern + sizeof vnet, &ip, packet_bytes);
    memcpy(stage->pattern + sizeof vnet + sizeof ip + FP_UDP_CHECK, &partial, sizeof partial);
    stage->pattern_bytes = sizeof vnet + packet_bytes;
}

void fb_stage_udp_packet(struct fb_stage *stage, uint32_t peer, uint32_t packet_bytes)
{
    struct iphdr ip = ip_header(peer, OURS, IPPROTO_UDP, packet_bytes);
    put_udp(stage, stage->pattern, &ip, packet_bytes);
    uint64_t sum = fp_sum(stage->pattern + sizeof ip, packet_bytes - sizeof ip, pseudo(&ip, packet_bytes - sizeof ip));
    uint16_t check = (uint16_t)~fp_fold(sum);
    memcpy(stage->pattern + sizeof ip + FP_UDP_CHECK, &check, sizeof check);
    stage->pattern_bytes = packet_bytes;
}

static struct tcphdr tcp_header(uint32_t sequence)
{
    return (struct tcphdr){.source = htons(20000), .dest = htons(9009), .seq = htonl(sequence), .ack_seq = htonl(7), .doff = 5,
                           .ack = 1, .window = htons(500)};
}

void fb_stage_tcp_frame(struct fb_stage *stage, uint32_t peer, uint32_t packet_bytes, uint32_t segments)
{
    const uint32_t headers = sizeof(struct iphdr) + sizeof(struct tcphdr);
    const uint32_t payload = (packet_bytes - headers) * segments;
    struct iphdr ip = ip_header(OURS, peer, IPPROTO_TCP, headers + payload);
    struct tcphdr tcp = tcp_header(1);
    tcp.check = pseudo(&ip, sizeof tcp + payload);
    struct fp_vnet vnet = {.flags = FP_VNET_NEEDS_CSUM, .gso_type = FP_VNET_GSO_TCPV4, .header_bytes = (uint16_t)headers,
                           .gso_size = (uint16_t)(packet_bytes - headers), .csum_start = sizeof ip, .csum_offset = FP_TCP_CHECK};
    memcpy(stage->pattern, &vnet, sizeof vnet);
    memcpy(stage->pattern + sizeof vnet, &ip, sizeof ip);
    memcpy(stage->pattern + sizeof vnet + sizeof ip, &tcp, sizeof tcp);
    fill(stage, stage->pattern + sizeof vnet + headers, payload);
    stage->pattern_bytes = sizeof vnet + headers + payload;
}

void fb_stage_tcp_train(struct fb_stage *stage, uint32_t peer, uint32_t packet_bytes, uint32_t segments)
{
    const uint32_t headers = sizeof(struct iphdr) + sizeof(struct tcphdr);
    for (uint32_t i = 0; i < segments; i++) {
        uint8_t *packet = stage->pattern + (size_t)i * packet_bytes;
        struct iphdr ip = ip_header(peer, OURS, IPPROTO_TCP, packet_bytes);
        struct tcphdr tcp = tcp_header(1 + i * (packet_bytes - headers));
        memcpy(packet, &ip, sizeof ip);
        memcpy(packet + sizeof ip, &tcp, sizeof tcp);
        fill(stage, packet + headers, packet_bytes - headers);
        uint64_t sum = fp_sum(packet + sizeof ip, packet_bytes - sizeof ip, pseudo(&ip, packet_bytes - sizeof ip));
        tcp.check = (uint16_t)~fp_fold(sum);
        memcpy(packet + sizeof ip, &tcp, sizeof tcp);
    }
    stage->pattern_bytes = (size_t)segments * packet_bytes;
}
