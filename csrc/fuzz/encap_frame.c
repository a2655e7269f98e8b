/*
 * Fuzz target: frames from the TUN device. Whatever leaves must be whole IP packets with right header checksums.
 *
 *   | max_segments | mtu 2 | options | then frames: | flags: 1 repair, 2 source, 4 destination | length 2 | vnet_hdr, packet | ...
 */
#include "flows.h"
#include "fuzz.h"

static void check_send(const struct fp_send *send)
{
    uint32_t segments = 0;
    for (uint32_t at = 0; at < send->bytes; segments++) {
        uint32_t bytes = send->bytes - at < send->segment_bytes ? send->bytes - at : send->segment_bytes;
        struct fp_ip ip;
        FZ_CHECK(fp_ip_check(send->data + at, bytes, &ip) == FP_ENCAPSULATED);
        FZ_CHECK(ip.total_bytes == bytes);
        at += bytes;
    }
    FZ_CHECK(segments == send->segments && send->bytes <= FP_DATAGRAM_BYTES_MAX);
}

static void flush(struct fp_encap *encap)
{
    const struct fp_send *sends;
    size_t count = fp_encap_sends(encap, &sends);
    for (size_t i = 0; i < count; i++)
        check_send(&sends[i]);
    fp_encap_reset(encap);
}

/* Flows are told apart before the header is checked: by bytes as they come. */
static void tell_flow(struct fp_flows *flows, const uint8_t *frame, size_t bytes)
{
    if (bytes <= FP_VNET_HDR_BYTES)
        return;
    fp_flows_take(flows, frame + FP_VNET_HDR_BYTES, bytes - FP_VNET_HDR_BYTES);
    flows->now_ms += (uint32_t)bytes;
}

static void offer(struct fp_encap *encap, struct fp_flows *flows, const struct fp_context *context, struct fz_input *input)
{
    const uint32_t here = FZ_HERE, there = FZ_THERE;
    uint8_t flags = fz_u8(input);
    size_t bytes = fz_u16(input);
    uint8_t *frame = fz_take(input, &bytes);
    if ((flags & 1) && bytes > FP_VNET_HDR_BYTES)
        fz_repair(frame + FP_VNET_HDR_BYTES, bytes - FP_VNET_HDR_BYTES, flags & 2 ? &here : NULL, flags & 4 ? &there : NULL);
    tell_flow(flows, frame, bytes);
    enum fp_verdict verdict = fp_encap_frame(encap, context, frame, bytes);
    if (verdict == FP_FULL) {
        flush(encap);
        verdict = fp_encap_frame(encap, context, frame, bytes);
        FZ_CHECK(verdict != FP_FULL); /* any frame fits into empty runs */
    }
    if (verdict != FP_ENCAPSULATED && bytes >= FP_VNET_HDR_BYTES) {
        uint8_t error[FP_ICMP_BYTES_MAX];
        size_t error_bytes = fp_icmp_error(context, verdict, frame + FP_VNET_HDR_BYTES, bytes - FP_VNET_HDR_BYTES, 1400, error, sizeof error);
        struct fp_ip ip;
        FZ_CHECK(error_bytes == 0 || (fp_ip_check(error, error_bytes, &ip) == FP_ENCAPSULATED && ip.total_bytes == error_bytes));
    }
    free(frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fz_input input = {data, bytes};
    struct fz_node node;
    uint32_t max_segments = fz_u8(&input);
    uint32_t mtu_bytes = fz_u16(&input);
    fz_node_init(&node, mtu_bytes, fz_u8(&input));
    static void *memory;
    struct fp_encap *encap = fp_encap_init(fz_lasting(&memory, fp_encap_bytes()), max_segments);
    static struct fp_flows flows;
    fp_flows_init(&flows);
    while (input.left > 0)
        offer(encap, &flows, &node.context, &input);
    flush(encap);
    return 0;
}
