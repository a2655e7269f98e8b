/*
 * wire.h: loads and stores at any alignment, and the offsets of the headers that the core knows.
 *
 * Only inline functions and constants. Nothing here checks a length: whoever calls has done it.
 *
 *   frame on TUN   | virtio_net_hdr 10 | IPv4 20..60 or IPv6 40 and extension headers | TCP 20..60 or UDP 8 | payload
 *   datagram       |                     IPv4 20..60 or IPv6 40 and extension headers | TCP 20..60 or UDP 8 | payload
 */
#ifndef FLANPY_WIRE_H
#define FLANPY_WIRE_H

#include "flanpy.h"

#include <assert.h>
#include <string.h>

#define FP_INLINE static inline __attribute__((always_inline, unused))
#define FP_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define FP_UNLIKELY(condition) __builtin_expect(!!(condition), 0)

enum {
    FP_IP_TOS = 1,
    FP_IP_LENGTH = 2,
    FP_IP_ID = 4,
    FP_IP_FRAGMENT = 6,
    FP_IP_TTL = 8,
    FP_IP_PROTOCOL = 9,
    FP_IP_CHECK = 10,
    FP_IP_SOURCE = 12,
    FP_IP_DESTINATION = 16,
    FP_IP_BYTES = 20,     /* without options */
    FP_IP_BYTES_MAX = 60, /* the header length field has 4 bits, in words of 4 bytes */

    FP_IP_DF = 0x4000,
    FP_IP_MF = 0x2000,
    FP_IP_OFFSET = 0x1fff, /* in units of 8 bytes */

    FP_IP6_LENGTH = 4, /* of all that follows the header */
    FP_IP6_NEXT = 6,
    FP_IP6_HOPS = 7,
    FP_IP6_SOURCE = 8,
    FP_IP6_DESTINATION = 24,
    FP_IP6_BYTES = 40,
    FP_IP6_MTU_MIN = 1280, /* RFC 8200 5: every link carries it */

    FP_TCP_SEQUENCE = 4,
    FP_TCP_ACK = 8,
    FP_TCP_OFFSET = 12, /* data offset in the upper 4 bits; the flags follow in the next byte */
    FP_TCP_FLAGS = 13,
    FP_TCP_WINDOW = 14,
    FP_TCP_CHECK = 16,
    FP_TCP_URGENT = 18,
    FP_TCP_BYTES = 20,
    FP_TCP_BYTES_MAX = 60,

    FP_UDP_LENGTH = 4,
    FP_UDP_CHECK = 6,
    FP_UDP_BYTES = 8,

    FP_PROTOCOL_HOP_BY_HOP = 0, /* IPv6 options */
    FP_PROTOCOL_ICMP = 1,
    FP_PROTOCOL_TCP = 6,
    FP_PROTOCOL_UDP = 17,
    FP_PROTOCOL_ROUTING = 43,  /* IPv6 */
    FP_PROTOCOL_FRAGMENT = 44, /* IPv6 */
    FP_PROTOCOL_AH = 51,
    FP_PROTOCOL_ICMP6 = 58,
    FP_PROTOCOL_NONE = 59, /* IPv6: nothing follows that could be read */
    FP_PROTOCOL_DESTINATION = 60, /* IPv6 options */
    FP_PROTOCOL_MOBILITY = 135,
    FP_PROTOCOL_HIP = 139,
    FP_PROTOCOL_SHIM6 = 140,
};

enum { FP_FIN = 1, FP_SYN = 2, FP_RST = 4, FP_PSH = 8, FP_ACK = 16, FP_URG = 32, FP_ECE = 64, FP_CWR = 128 };

/* struct virtio_net_hdr as the TUN device speaks it: native byte order, no num_buffers. */
enum {
    FP_VNET_NEEDS_CSUM = 1,
    FP_VNET_GSO_NONE = 0,
    FP_VNET_GSO_TCPV4 = 1,
    FP_VNET_GSO_TCPV6 = 4,
    FP_VNET_GSO_UDP_L4 = 5,
    FP_VNET_GSO_ECN = 0x80, /* or-ed to the type: the superpacket has CWR, which only the first segment may have */
};

struct fp_vnet {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_bytes; /* a hint of the kernel's; never trusted */
    uint16_t gso_size;     /* payload of one segment */
    uint16_t csum_start;   /* from the start of the packet */
    uint16_t csum_offset;  /* from csum_start */
};
static_assert(sizeof(struct fp_vnet) == FP_VNET_HDR_BYTES, "virtio_net_hdr is 10 bytes");

FP_INLINE uint16_t fp_load16(const void *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

FP_INLINE uint32_t fp_load32(const void *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

FP_INLINE uint64_t fp_load64(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

FP_INLINE void fp_store16(void *to, uint16_t value)
{
    memcpy(to, &value, sizeof value);
}

FP_INLINE void fp_store32(void *to, uint32_t value)
{
    memcpy(to, &value, sizeof value);
}

/* Between host and network byte order; the same both ways. */
FP_INLINE uint16_t fp_swap16(uint16_t value)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_bswap16(value);
#else
    return value;
#endif
}

FP_INLINE uint32_t fp_swap32(uint32_t value)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_bswap32(value);
#else
    return value;
#endif
}

FP_INLINE uint64_t fp_swap64(uint64_t value)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_bswap64(value);
#else
    return value;
#endif
}

FP_INLINE uint16_t fp_load16_be(const void *from)
{
    return fp_swap16(fp_load16(from));
}

FP_INLINE uint32_t fp_load32_be(const void *from)
{
    return fp_swap32(fp_load32(from));
}

FP_INLINE uint64_t fp_load64_be(const void *from)
{
    return fp_swap64(fp_load64(from));
}

FP_INLINE void fp_store16_be(void *to, uint16_t value)
{
    fp_store16(to, fp_swap16(value));
}

FP_INLINE void fp_store32_be(void *to, uint32_t value)
{
    fp_store32(to, fp_swap32(value));
}

/* fp_fold, where a call would cost as much as the folding does. */
FP_INLINE uint16_t fp_folded(uint64_t sum)
{
    sum = (sum >> 32) + (sum & 0xffffffff); /* 33 bits */
    sum = (sum >> 16) + (sum & 0xffff);     /* 18 bits */
    sum = (sum >> 16) + (sum & 0xffff);     /* 17 bits, at most 0x10002 */
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)sum;
}

/* One writer: a plain addition, but with stores that a reader elsewhere never sees half done. */
FP_INLINE void fp_count_verdict(struct fp_verdict_counters *counters, enum fp_verdict verdict, uint64_t packets, uint64_t bytes)
{
    struct fp_count *count = &counters->by[verdict];
    __atomic_store_n(&count->packets, count->packets + packets, __ATOMIC_RELAXED);
    __atomic_store_n(&count->bytes, count->bytes + bytes, __ATOMIC_RELAXED);
}

#endif
