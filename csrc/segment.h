/*
 * segment.h: cut a TCP or UDP superpacket (TSO, USO) into the packets that it stands for.
 *
 *   | IP | TCP or UDP | payload of many segments |  ->  | IP | TCP | payload 0 |  | IP | TCP | payload 1 |  ...
 *
 * Prepared once, then cut in as many pieces as the caller has places for. What depends on the IP version is one function
 * that writes a segment's network header and one pseudo-header sum; TCP and UDP know nothing of it.
 */
#ifndef FLANPY_SEGMENT_H
#define FLANPY_SEGMENT_H

#include "ip.h"

#define FP_HEADERS_BYTES_MAX (FP_IP_BYTES_MAX + FP_TCP_BYTES_MAX)

/*
 * The cut writes headers in one block of this size and the payload over its end: the place of a segment must be followed by as many
 * spare bytes.
 */
#define FP_CUT_SLACK_BYTES 64u

struct fp_cut {
    const uint8_t *payload;
    uint32_t payload_bytes;
    uint32_t segments;
    uint16_t segment_payload; /* of every segment but the last */
    uint16_t headers_bytes;
    uint16_t network_bytes;
    uint16_t id;          /* of the first segment, host order; IPv6 has none */
    uint32_t sequence;    /* of the first segment, host order */
    uint64_t network_sum; /* the IPv4 header without total length, id and checksum */
    uint64_t transport_sum; /* pseudo-header and transport header without what changes from segment to segment */
    uint8_t version; /* 4 or 6 */
    uint8_t protocol;
    uint8_t flags;       /* TCP's, of the superpacket */
    uint8_t offset_byte; /* TCP's data offset and reserved bits */
    uint8_t headers[FP_HEADERS_BYTES_MAX];
};

/*
 * Check a superpacket (its IP header has been checked, `ip` tells) against its offload fields. 0, or FP_DROP_BAD_OFFLOAD (also for IPv6
 * with more extension headers than IPv4 could have options), FP_DROP_TRUNCATED, FP_DROP_BAD_HEADER. The packets will leave with this time
 * to live.
 */
enum fp_verdict fp_cut_prepare(struct fp_cut *cut, const uint8_t *packet, const struct fp_ip *ip, const struct fp_vnet *vnet,
                               uint8_t ttl);

/* Bytes of every packet but the last, and of the last. */
FP_INLINE uint32_t fp_cut_bytes(const struct fp_cut *cut)
{
    return (uint32_t)cut->headers_bytes + cut->segment_payload;
}

FP_INLINE uint32_t fp_cut_last_bytes(const struct fp_cut *cut)
{
    return cut->headers_bytes + cut->payload_bytes - (cut->segments - 1) * cut->segment_payload;
}

/* Write packets first..first+count-1 one behind the other; `to` has room for them and FP_CUT_SLACK_BYTES more. */
void fp_cut_write(const struct fp_cut *cut, uint32_t first, uint32_t count, uint8_t *to);

#endif
