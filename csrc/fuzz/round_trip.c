/*
 * Fuzz target: cut a superpacket, let its packets arrive, merge them: the result must be the superpacket that was cut.
 *
 *   | kind: 1 UDP, 2 DF clear, 4 PSH, 8 ECE | id 2 | sequence 4 | gso_size 2 | TOS | option words | payload ...
 */
#include "fuzz.h"

struct made {
    uint8_t *frame;
    size_t bytes; /* of the packet, without vnet_hdr */
    size_t headers;
    struct fp_vnet vnet;
};

static void put_tcp(uint8_t *tcp, uint8_t kind, uint32_t sequence, size_t tcp_bytes)
{
    fp_store32_be(tcp + FP_TCP_SEQUENCE, sequence);
    fp_store32_be(tcp + FP_TCP_ACK, 77);
    tcp[FP_TCP_OFFSET] = (uint8_t)(tcp_bytes / 4 << 4);
    tcp[FP_TCP_FLAGS] = (uint8_t)(FP_ACK | (kind & 4 ? FP_PSH : 0) | (kind & 8 ? FP_ECE : 0));
    fp_store16_be(tcp + FP_TCP_WINDOW, 500);
    memset(tcp + FP_TCP_BYTES, 1, tcp_bytes - FP_TCP_BYTES); /* options: NOP */
}

/* A superpacket from us to the peer, without checksums but the IP header's. */
static struct made make(struct fz_input *input)
{
    uint8_t kind = fz_u8(input);
    uint16_t id = fz_u16(input);
    uint32_t sequence = fz_u32(input);
    uint16_t gso_size = fz_u16(input);
    uint8_t tos = fz_u8(input);
    size_t transport = kind & 1 ? FP_UDP_BYTES : FP_TCP_BYTES + (size_t)(fz_u8(input) & 7) * 4;
    struct made made = {.headers = FP_IP_BYTES + transport};
    size_t payload = input->left < FP_PACKET_BYTES_MAX - made.headers ? input->left : FP_PACKET_BYTES_MAX - made.headers;
    made.bytes = made.headers + payload;
    made.frame = malloc(FP_VNET_HDR_BYTES + made.bytes);
    uint8_t *packet = made.frame + FP_VNET_HDR_BYTES;
    memset(packet, 0, made.headers);
    if (payload > 0)
        memcpy(packet + made.headers, input->data, payload);
    packet[0] = 0x45;
    packet[FP_IP_TOS] = tos;
    fp_store16_be(packet + FP_IP_LENGTH, (uint16_t)made.bytes);
    fp_store16_be(packet + FP_IP_ID, id);
    fp_store16_be(packet + FP_IP_FRAGMENT, kind & 2 ? 0 : FP_IP_DF);
    packet[FP_IP_TTL] = 64;
    packet[FP_IP_PROTOCOL] = kind & 1 ? FP_PROTOCOL_UDP : FP_PROTOCOL_TCP;
    fp_store32_be(packet + FP_IP_SOURCE, FZ_HERE);
    fp_store32_be(packet + FP_IP_DESTINATION, FZ_THERE);
    fp_ip_store_check(packet, FP_IP_BYTES);
    fp_store32_be(packet + FP_IP_BYTES, 0x1f904321);
    if (kind & 1)
        fp_store16_be(packet + FP_IP_BYTES + FP_UDP_LENGTH, (uint16_t)(made.bytes - FP_IP_BYTES));
    else
        put_tcp(packet + FP_IP_BYTES, kind, sequence, transport);
    made.vnet = (struct fp_vnet){.flags = FP_VNET_NEEDS_CSUM,
                                 .gso_type = kind & 1 ? FP_VNET_GSO_UDP_L4 : FP_VNET_GSO_TCPV4,
                                 .header_bytes = (uint16_t)made.headers,
                                 .gso_size = gso_size,
                                 .csum_start = FP_IP_BYTES,
                                 .csum_offset = kind & 1 ? FP_UDP_CHECK : FP_TCP_CHECK};
    memcpy(made.frame, &made.vnet, sizeof made.vnet);
    return made;
}

/* Exchanging source and destination changes no checksum, so what a node sends can arrive at itself. */
static void swap_addresses(uint8_t *packet)
{
    uint32_t source = fp_load32(packet + FP_IP_SOURCE);
    fp_store32(packet + FP_IP_SOURCE, fp_load32(packet + FP_IP_DESTINATION));
    fp_store32(packet + FP_IP_DESTINATION, source);
}

static void check_equal(const struct made *made, const struct fp_write *write)
{
    static uint8_t merged[FP_VNET_HDR_BYTES + FP_PACKET_BYTES_MAX];
    size_t bytes = 0;
    for (uint32_t i = 0; i < write->iov_count; i++) {
        FZ_CHECK(bytes + write->iov[i].iov_len <= sizeof merged);
        memcpy(merged + bytes, write->iov[i].iov_base, write->iov[i].iov_len);
        bytes += write->iov[i].iov_len;
    }
    uint8_t *packet = made->frame + FP_VNET_HDR_BYTES;
    swap_addresses(packet);
    packet[FP_IP_TTL] = 62; /* once at each end */
    fp_ip_store_check(packet, FP_IP_BYTES);
    uint32_t transport_bytes = (uint32_t)(made->bytes - FP_IP_BYTES);
    fp_store16(packet + FP_IP_BYTES + made->vnet.csum_offset,
               fp_fold(fp_ip_pseudo_sum(packet, packet[FP_IP_PROTOCOL], transport_bytes)));
    FZ_CHECK(bytes == FP_VNET_HDR_BYTES + made->bytes);
    FZ_CHECK(memcmp(merged, made->frame, bytes) == 0);
}

static void receive(const struct made *made, const struct fp_context *context, const struct fp_send *sends, size_t count)
{
    static void *memory;
    struct fp_decap *decap = fp_decap_init(fz_lasting(&memory, fp_decap_bytes()));
    const struct fp_write *writes;
    size_t packets = 0;
    for (size_t i = 0; i < count; i++) {
        for (size_t at = 0; at < sends[i].bytes; at += sends[i].segment_bytes, packets++)
            swap_addresses(sends[i].data + at);
        FZ_CHECK(fp_decap_train(decap, context, &fz_peer, 0, sends[i].data, sends[i].bytes, sends[i].segment_bytes) == sends[i].bytes);
    }
    size_t written = fp_decap_writes(decap, &writes);
    if (packets > 1 && packets <= 64) {
        FZ_CHECK(written == 1);
        check_equal(made, &writes[0]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct fz_input input = {data, bytes};
    struct fz_node node;
    fz_node_init(&node, 65507, FP_OPT_SOURCE_CHECK | FP_OPT_USO);
    struct made made = make(&input);
    static void *memory;
    struct fp_encap *encap = fp_encap_init(fz_lasting(&memory, fp_encap_bytes()), 64);
    if (fp_encap_frame(encap, &node.context, made.frame, FP_VNET_HDR_BYTES + made.bytes) == FP_ENCAPSULATED) {
        const struct fp_send *sends;
        size_t count = fp_encap_sends(encap, &sends);
        if (count <= 2)
            receive(&made, &node.context, sends, count);
    }
    free(made.frame);
    return 0;
}
