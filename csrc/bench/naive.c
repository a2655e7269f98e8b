/*
 * naive.c: plain versions; see naive.h. Knows only what the benchmark sends: IPv4 without options, TCP without options, UDP.
 */
#include "naive.h"

#include "../wire.h"

#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>

uint32_t fb_naive_lookup(const struct fb_naive_list *list, uint32_t destination)
{
    uint32_t best = FP_HOP_NONE, best_len = 0;
    for (size_t i = 0; i < list->n_routes; i++) {
        const struct fp_route4 *route = &list->routes[i];
        uint32_t mask = route->prefix_len == 0 ? 0 : UINT32_MAX << (32 - route->prefix_len);
        if ((destination & mask) == route->prefix && (best == FP_HOP_NONE || route->prefix_len > best_len)) {
            best = route->hop;
            best_len = route->prefix_len;
        }
    }
    return best;
}

static uint32_t add_words(const void *data, size_t bytes, uint32_t sum)
{
    const uint8_t *at = data;
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        sum += (uint32_t)at[i] << 8 | at[i + 1];
        sum = (sum & 0xffffu) + (sum >> 16);
    }
    if (bytes & 1)
        sum += (uint32_t)at[bytes - 1] << 8;
    return (sum & 0xffffu) + (sum >> 16);
}

uint16_t fb_naive_sum(const void *data, size_t bytes)
{
    return (uint16_t)add_words(data, bytes, 0);
}

uint16_t fb_naive_copy_sum(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
    return fb_naive_sum(to, bytes);
}

/* Internet checksum of a transport packet with its pseudo-header, host order, ready to store. */
static uint16_t transport_check(const struct iphdr *ip, const uint8_t *transport, size_t bytes)
{
    uint32_t sum = add_words(&ip->saddr, 8, (uint32_t)ip->protocol + (uint32_t)bytes);
    return (uint16_t)~add_words(transport, bytes, sum);
}

static void finish_ip(struct iphdr *ip, size_t bytes, uint16_t id)
{
    ip->ttl--;
    ip->tot_len = htons((uint16_t)bytes);
    ip->id = htons(id);
    ip->check = 0;
    ip->check = htons((uint16_t)~fb_naive_sum(ip, sizeof *ip));
}

static size_t encap_udp(const uint8_t *packet, size_t bytes, uint8_t *out)
{
    struct iphdr ip;
    struct udphdr udp;
    memcpy(out, packet, bytes);
    memcpy(&ip, out, sizeof ip);
    finish_ip(&ip, bytes, ntohs(ip.id));
    memcpy(out, &ip, sizeof ip);
    memcpy(&udp, out + sizeof ip, sizeof udp);
    udp.check = 0;
    memcpy(out + sizeof ip, &udp, sizeof udp);
    uint16_t check = transport_check(&ip, out + sizeof ip, bytes - sizeof ip);
    udp.check = htons(check == 0 ? 0xffff : check);
    memcpy(out + sizeof ip, &udp, sizeof udp);
    return bytes;
}

static size_t encap_tcp(const uint8_t *packet, size_t bytes, size_t gso_size, uint8_t *out)
{
    const size_t headers = sizeof(struct iphdr) + sizeof(struct tcphdr);
    size_t written = 0;
    struct iphdr ip;
    struct tcphdr tcp;
    for (size_t at = headers; at < bytes; at += gso_size) {
        size_t payload = bytes - at < gso_size ? bytes - at : gso_size;
        uint8_t *segment = out + written;
        memcpy(segment, packet, headers);
        memcpy(segment + headers, packet + at, payload);
        memcpy(&ip, segment, sizeof ip);
        finish_ip(&ip, headers + payload, (uint16_t)(ntohs(ip.id) + (at - headers) / gso_size));
        memcpy(segment, &ip, sizeof ip);
        memcpy(&tcp, segment + sizeof ip, sizeof tcp);
        tcp.seq = htonl((uint32_t)(ntohl(tcp.seq) + at - headers));
        tcp.psh = tcp.psh && at + payload == bytes;
        tcp.check = 0;
        memcpy(segment + sizeof ip, &tcp, sizeof tcp);
        tcp.check = htons(transport_check(&ip, segment + sizeof ip, sizeof tcp + payload));
        memcpy(segment + sizeof ip, &tcp, sizeof tcp);
        written += headers + payload;
    }
    return written;
}

size_t fb_naive_encap(const struct fb_naive_list *list, uint8_t *frame, size_t bytes, uint8_t *out)
{
    struct fp_vnet vnet;
    struct iphdr ip;
    if (bytes < sizeof vnet + sizeof ip)
        return 0;
    memcpy(&vnet, frame, sizeof vnet);
    memcpy(&ip, frame + sizeof vnet, sizeof ip);
    bytes -= sizeof vnet;
    if (ip.version != 4 || ip.ihl != 5 || ntohs(ip.tot_len) != bytes || ip.ttl <= 1)
        return 0;
    if (add_words(&ip, sizeof ip, 0) != 0xffff || fb_naive_lookup(list, ntohl(ip.daddr)) == FP_HOP_NONE)
        return 0;
    if (vnet.gso_type == FP_VNET_GSO_TCPV4)
        return encap_tcp(frame + sizeof vnet, bytes, vnet.gso_size, out);
    return encap_udp(frame + sizeof vnet, bytes, out);
}

static bool accepts(const struct fb_naive_list *list, const struct fp_address *sender, const struct iphdr *ip, size_t bytes)
{
    if (bytes < sizeof *ip || ip->version != 4 || ip->ihl != 5 || ntohs(ip->tot_len) > bytes || ip->ttl <= 1)
        return false;
    if (add_words(ip, sizeof *ip, 0) != 0xffff || fb_naive_lookup(list, ntohl(ip->daddr)) != FP_HOP_LOCAL)
        return false;
    uint32_t hop = fb_naive_lookup(list, ntohl(ip->saddr));
    return hop < FP_HOP_LOCAL && memcmp(&list->hops[hop].address, sender, sizeof *sender) == 0;
}

size_t fb_naive_decap(const struct fb_naive_list *list, const struct fp_address *sender, uint8_t *packet, size_t bytes, uint8_t *out)
{
    struct iphdr ip;
    memcpy(&ip, packet, sizeof ip);
    if (!accepts(list, sender, &ip, bytes))
        return 0;
    finish_ip(&ip, ntohs(ip.tot_len), ntohs(ip.id));
    memset(out, 0, FP_VNET_HDR_BYTES);
    memcpy(out + FP_VNET_HDR_BYTES, packet, bytes);
    memcpy(out + FP_VNET_HDR_BYTES, &ip, sizeof ip);
    return FP_VNET_HDR_BYTES + bytes;
}

size_t fb_naive_merge(const struct fb_naive_list *list, const struct fp_address *sender, uint8_t *train, size_t bytes,
                      size_t segment_bytes, uint8_t *out)
{
    const size_t headers = sizeof(struct iphdr) + sizeof(struct tcphdr);
    uint8_t *packet = out + FP_VNET_HDR_BYTES;
    size_t total = headers;
    struct iphdr ip;
    struct tcphdr tcp;
    for (size_t at = 0; at + headers < bytes; at += segment_bytes) {
        size_t segment = bytes - at < segment_bytes ? bytes - at : segment_bytes;
        memcpy(&ip, train + at, sizeof ip);
        if (!accepts(list, sender, &ip, segment) || transport_check(&ip, train + at + sizeof ip, segment - sizeof ip) != 0)
            return 0;
        memcpy(packet + total, train + at + headers, segment - headers);
        total += segment - headers;
    }
    memcpy(&ip, train, sizeof ip);
    memcpy(&tcp, train + sizeof ip, sizeof tcp);
    finish_ip(&ip, total, ntohs(ip.id));
    tcp.check = htons((uint16_t)add_words(&ip.saddr, 8, (uint32_t)(IPPROTO_TCP + total - sizeof ip)));
    memcpy(packet, &ip, sizeof ip);
    memcpy(packet + sizeof ip, &tcp, sizeof tcp);
    struct fp_vnet vnet = {.flags = FP_VNET_NEEDS_CSUM, .gso_type = FP_VNET_GSO_TCPV4, .header_bytes = (uint16_t)headers,
                           .gso_size = (uint16_t)(segment_bytes - headers), .csum_start = sizeof ip, .csum_offset = FP_TCP_CHECK};
    memcpy(out, &vnet, sizeof vnet);
    return FP_VNET_HDR_BYTES + total;
}
