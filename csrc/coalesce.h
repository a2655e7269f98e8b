/*
 * coalesce.h: merge packets of one flow into superpackets for the TUN device (GRO). For decap.c.
 *
 * Every packet becomes a write, or joins the write of its flow. A write of one packet is that packet as it is behind ten zero
 * bytes; a merged one is a header made anew and the payloads where they were received:
 *
 *   | vnet_hdr, IP, TCP | payload 0 | payload 1 | ...      iov[0] in `headers`, the rest in the receive buffers
 *
 * Writes leave in order, and a packet may join only the latest write of its flow while that is open, so flows keep their order.
 */
#ifndef FLANPY_COALESCE_H
#define FLANPY_COALESCE_H

#include "segment.h"

enum {
    FP_WRITES_MAX = 256,
    FP_MERGED_MAX = 64, /* packets in one write */
    FP_WRITE_IOVS = FP_MERGED_MAX + 1,
    FP_FLOW_SLOTS = 64,
    FP_HEADER_SLOT_BYTES = 192, /* vnet_hdr and headers, at most 130; whole cache lines */
};
static_assert(FP_HEADER_SLOT_BYTES >= FP_VNET_HDR_BYTES + FP_HEADERS_BYTES_MAX, "the largest headers fit");

/* A write that packets may join; beside the fp_write of the same number. */
struct fp_merge {
    uint8_t *packet; /* the first one, whose headers stand for all */
    uint32_t next_sequence;
    uint32_t payload_bytes; /* of all together */
    uint16_t segment_payload;
    uint16_t network_bytes;
    uint16_t headers_bytes;
    uint16_t last_id; /* IPv4 */
    uint8_t version;
    uint8_t protocol;
    uint8_t pushed; /* FP_PSH of the last packet */
    bool open;      /* takes more */
    bool verified;  /* the first packet's checksum is right */
};

struct fp_coalesce {
    uint32_t count;
    uint32_t iovs_used;
    uint16_t flows[FP_FLOW_SLOTS]; /* by hash: number of the flow's open write, plus 1 */
    uint8_t plain[FP_VNET_HDR_BYTES]; /* the zero vnet_hdr of all packets that go as they are */
    struct fp_merge merges[FP_WRITES_MAX];
    struct fp_write writes[FP_WRITES_MAX];
    struct iovec iovs[FP_WRITES_MAX * FP_WRITE_IOVS];
    _Alignas(64) uint8_t headers[FP_WRITES_MAX][FP_HEADER_SLOT_BYTES];
};

void fp_coalesce_init(struct fp_coalesce *coalesce);
void fp_coalesce_reset(struct fp_coalesce *coalesce);

/* Room for one more packet, whatever becomes of it? */
FP_INLINE bool fp_coalesce_has_room(const struct fp_coalesce *coalesce)
{
    return coalesce->count < FP_WRITES_MAX;
}

/*
 * Take a packet whose IP header has been checked (`ip` tells, fields as they are now in the packet). It must stay where it is until
 * reset. There must be room. `options`: FP_OPT_USO and FP_OPT_NO_COALESCE.
 */
void fp_coalesce_packet(struct fp_coalesce *coalesce, uint32_t options, uint8_t *packet, const struct fp_ip *ip);

/* Make the headers of merged writes; after it, the writes are ready. May be called again after more packets. */
void fp_coalesce_finish(struct fp_coalesce *coalesce);

#endif
