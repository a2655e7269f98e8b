/*
 * flows.c: the rate of each flow that leaves, and what must not overtake what. See flows.h.
 */
#include "flows.h"

#include "ip.h"

/* What is known of a packet before its header has been checked: enough to tell flows apart, and no more is read. */
struct key {
    uint32_t slot;
    bool fragment;
};

static uint64_t ports_of(const uint8_t *packet, size_t bytes, size_t at, uint8_t protocol)
{
    /* A header may end, or claim to end, behind the packet. */
    if ((protocol != FP_PROTOCOL_TCP && protocol != FP_PROTOCOL_UDP) || bytes < at + 4)
        return 0;
    return fp_load32(packet + at) * 0xc2b2ae3d27d4eb4full;
}

static uint32_t slot_of(uint64_t mixed)
{
    mixed *= 0xff51afd7ed558ccdull;
    mixed ^= mixed >> 32;
    mixed *= 0x9e3779b97f4a7c15ull;
    return (uint32_t)(mixed >> 32) % FP_FLOW_RATES;
}

/* The caller has seen a whole header of 20 bytes. */
static struct key key4(const uint8_t *packet, size_t bytes)
{
    uint64_t mixed = fp_ip_addresses_hash(packet, 4) ^ packet[FP_IP_PROTOCOL];
    bool fragment = (fp_load16_be(packet + FP_IP_FRAGMENT) & (FP_IP_MF | FP_IP_OFFSET)) != 0;
    if (!fragment)
        mixed ^= ports_of(packet, bytes, (size_t)(packet[0] & 15) * 4, packet[FP_IP_PROTOCOL]);
    return (struct key){.slot = slot_of(mixed), .fragment = fragment};
}

/* The caller has seen a whole header of 40 bytes. Behind an extension header there may be a fragment of any flow, so it counts as one. */
static struct key key6(const uint8_t *packet, size_t bytes)
{
    uint8_t next = packet[FP_IP6_NEXT];
    uint64_t mixed = fp_ip_addresses_hash(packet, 6) ^ next ^ ports_of(packet, bytes, FP_IP6_BYTES, next);
    return (struct key){.slot = slot_of(mixed), .fragment = fp_ip6_is_extension(next)};
}

/* Is it bulk by what it has sent? */
static bool is_fast(struct fp_flow_rate *rate, uint32_t now_ms, size_t bytes)
{
    if (now_ms - rate->since_ms >= FP_BULK_WINDOW_MS) {
        rate->since_ms = now_ms;
        rate->bytes = 0;
    }
    rate->bytes = bytes < FP_BULK_BYTES - rate->bytes ? rate->bytes + (uint32_t)bytes : FP_BULK_BYTES;
    if (rate->bytes == FP_BULK_BYTES) {
        rate->bulk_ms = now_ms;
        rate->bulk_once = true;
    }
    return rate->bulk_once && now_ms - rate->bulk_ms < FP_BULK_FRESH_MS;
}

/* Does this batch wait still? */
static bool waits(const struct fp_flows *flows, uint32_t batch)
{
    return (int32_t)(batch - flows->oldest) >= 0;
}

void fp_flows_init(struct fp_flows *flows)
{
    memset(flows, 0, sizeof *flows);
    flows->filling = 1;
    flows->oldest = 1; /* what no batch has had is of batch 0, which is sent */
}

bool fp_flows_take(struct fp_flows *flows, const uint8_t *packet, size_t bytes)
{
    struct key key;
    if (bytes >= FP_IP_BYTES && packet[0] >> 4 == 4)
        key = key4(packet, bytes);
    else if (bytes >= FP_IP6_BYTES && packet[0] >> 4 == 6)
        key = key6(packet, bytes);
    else
        return false;
    struct fp_flow_rate *rate = &flows->rates[key.slot];
    bool bulk = is_fast(rate, flows->now_ms, bytes) || waits(flows, rate->batch) || waits(flows, flows->fragment_batch);
    if (key.fragment)
        flows->fragment_batch = flows->filling;
    if (bulk || key.fragment)
        rate->batch = flows->filling;
    return bulk || key.fragment;
}

void fp_flows_next_batch(struct fp_flows *flows)
{
    flows->filling++;
}

void fp_flows_sent(struct fp_flows *flows)
{
    flows->oldest++;
    if (!waits(flows, flows->fragment_batch))
        flows->fragment_batch = flows->oldest - 1; /* kept near: half a round behind it would count as waiting */
}
