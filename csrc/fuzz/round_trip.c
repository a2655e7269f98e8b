/*
 * Fuzz target: cut a superpacket, let its packets arrive, merge them: the result must be the superpacket that was cut.
 *
 *   | kind: 1 UDP, 2 DF clear, 4 PSH, 8 ECE, 16 IPv6 | id 2 | sequence 4 | gso_size 2 | TOS | option words | payload ...
 */
#include "fuzz.h"

struct made {
    uint8_t *frame;
    size_t bytes; /* of the packet, without vnet_hdr */
    size_t network; /* bytes of the IP header */
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

static void put_ip4(uint8_t *packet, uint8_t kind, uint16_t id, uint8_t tos, size_t bytes)
{
    packet[0] = 0x45;
    packet[FP_IP_TOS] = tos;
    fp_store16_be(packet + FP_IP_LENGTH, (uint16_t)bytes);
    fp_store16_be(packet + FP_IP_ID, id);
    fp_store16_be(packet + FP_IP_FRAGMENT, kind & 2 ? 0 : FP_IP_DF);
    packet[FP_IP_TTL] = 64;
    packet[FP_IP_PROTOCOL] = kind & 1 ? FP_PROTOCOL_UDP : FP_PROTOCOL_TCP;
    fp_store32_be(packet + FP_IP_SOURCE, FZ_HERE);
    fp_store32_be(packet + FP_IP_DESTINATION, FZ_THERE);
    fp_ip_store_check(packet, FP_IP_BYTES);
}

static void put_ip6(uint8_t *packet, uint8_t kind, uint16_t label, uint8_t tos, size_t bytes)
{
    fp_store32_be(packet, 0x60000000u | (uint32_t)tos << 20 | label);
    fp_store16_be(packet + FP_IP6_LENGTH, (uint16_t)(bytes - FP_IP6_BYTES));
    packet[FP_IP6_NEXT] = kind & 1 ? FP_PROTOCOL_UDP : FP_PROTOCOL_TCP;
    packet[FP_IP6_HOPS] = 64;
    memcpy(packet + FP_IP6_SOURCE, fz_here6, 16);
    memcpy(packet + FP_IP6_DESTINATION, fz_there6, 16);
}

/* A superpacket from us to the peer, without checksums but the IPv4 header's. */
static struct made make(struct fz_input *input)
{
    uint8_t kind = fz_u8(input);
    uint16_t id = fz_u16(input);
    uint32_t sequence = fz_u32(input);
    uint16_t gso_size = fz_u16(input);
    uint8_t tos = fz_u8(input);
    size_t transport = kind & 1 ? FP_UDP_BYTES : FP_TCP_BYTES + (size_t)(fz_u8(input) & 7) * 4;
    struct made made = {.network = kind & 16 ? FP_IP6_BYTES : FP_IP_BYTES};
    made.headers = made.network + transport;
    size_t payload = input->left < FP_PACKET_BYTES_MAX - made.headers ? input->left : FP_PACKET_BYTES_MAX - made.headers;
    made.bytes = made.headers + payload;
    made.frame = malloc(FP_VNET_HDR_BYTES + made.bytes);
    uint8_t *packet = made.frame + FP_VNET_HDR_BYTES;
    memset(packet, 0, made.headers);
    if (payload > 0)
        memcpy(packet + made.headers, input->data, payload);
    if (kind & 16)
        put_ip6(packet, kind, id, tos, made.bytes);
    else
        put_ip4(packet, kind, id, tos, made.bytes);
    fp_store32_be(packet + made.network, 0x1f904321);
    if (kind & 1)
        fp_store16_be(packet + made.network + FP_UDP_LENGTH, (uint16_t)(made.bytes - made.network));
    else
        put_tcp(packet + made.network, kind, sequence, transport);
    made.vnet = (struct fp_vnet){.flags = FP_VNET_NEEDS_CSUM,
                                 .gso_type = kind & 1    ? FP_VNET_GSO_UDP_L4
                                             : kind & 16 ? FP_VNET_GSO_TCPV6
                                                         : FP_VNET_GSO_TCPV4,
                                 .header_bytes = (uint16_t)made.headers,
                                 .gso_size = gso_size,
                                 .csum_start = (uint16_t)made.network,
                                 .csum_offset = kind & 1 ? FP_UDP_CHECK : FP_TCP_CHECK};
    memcpy(made.frame, &made.vnet, sizeof made.vnet);
    return made;
}

/* Exchanging source and destination changes no checksum, so what a node sends can arrive at itself. */
static void swap_addresses(uint8_t *packet)
{
    uint8_t version = packet[0] >> 4;
    size_t half = fp_ip_addresses_bytes(version) / 2;
    uint8_t *source = packet + (fp_ip_addresses(packet, version) - packet);
    uint8_t kept[16];
    memcpy(kept, source, half);
    memcpy(source, source + half, half);
    memcpy(source + half, kept, half);
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
    uint8_t version = packet[0] >> 4;
    swap_addresses(packet);
    packet[version == 6 ? FP_IP6_HOPS : FP_IP_TTL] = 62; /* once at each end */
    if (version == 4)
        fp_ip_store_check(packet, FP_IP_BYTES);
    uint8_t protocol = packet[version == 6 ? FP_IP6_NEXT : FP_IP_PROTOCOL];
    uint32_t transport_bytes = (uint32_t)(made->bytes - made->network);
    fp_store16(packet + made->network + made->vnet.csum_offset,
               fp_fold(fp_ip_any_pseudo_sum(packet, version, protocol, transport_bytes)));
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
