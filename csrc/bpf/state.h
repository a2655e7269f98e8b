/*
 * state.h: the maps, and reading them: the snapshot of the table, hops, recent times, counters.
 */
#ifndef FLANPY_BPF_STATE_H
#define FLANPY_BPF_STATE_H

#include "kernel.h"
#include "layout.h"
#include "packet.h"

FP_MAP(fp_tables, BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 1); /* the one snapshot in use */
FP_MAP(fp_counters, BPF_MAP_TYPE_PERCPU_ARRAY, 4, sizeof(struct fp_bpf_counters), 1);
FP_MAP(fp_peers, BPF_MAP_TYPE_PERCPU_HASH, 16, sizeof(struct fp_bpf_peer), FP_BPF_PEERS); /* by struct fp_address */
FP_MAP(fp_trains, BPF_MAP_TYPE_ARRAY, 4, 8, FP_BPF_SLOTS); /* by fp_pair(): when bulk was last left to userspace, ns */
FP_MAP(fp_wholes, BPF_MAP_TYPE_ARRAY, 4, 8, FP_BPF_SLOTS); /* by peer: superpackets that came whole from it (a note) */
FP_MAP(fp_thanks, BPF_MAP_TYPE_ARRAY, 4, 8, FP_BPF_SLOTS); /* by peer: what it says of ours (a note) */

FP_INLINE void *fp_snapshot(void)
{
    __u32 zero = 0;
    return bpf_map_lookup_elem(&fp_tables, &zero);
}

FP_INLINE const struct fp_bpf_header *fp_header(void *snapshot)
{
    __u32 index = FP_BPF_HEADER_CHUNK;
    return bpf_map_lookup_elem(snapshot, &index);
}

FP_INLINE struct fp_bpf_counters *fp_counts(void)
{
    __u32 zero = 0;
    return bpf_map_lookup_elem(&fp_counters, &zero);
}

FP_INLINE void fp_add(struct fp_bpf_count *count, __u32 packets, __u64 bytes)
{
    count->packets += packets;
    count->bytes += bytes;
}

FP_INLINE void fp_count(struct fp_bpf_counters *counters, enum fp_verdict verdict, __u32 packets, __u64 bytes)
{
    fp_add(&counters->by[verdict], packets, bytes);
}

/* Where to count for a peer, or NULL. One look-up a packet or superpacket. */
FP_INLINE struct fp_bpf_peer *fp_peer(const struct fp_address *address)
{
    return bpf_map_lookup_elem(&fp_peers, address);
}

/*
 * What a search has read on its way: the next one finds it there. Source and destination of a packet mostly lie in one /16, and a
 * look-up of a chunk is a call, for the kernel does not inline it in a map of maps.
 */
struct fp_trail {
    __u32 first_at;
    __u32 second_at;
    const __u32 *first;
    const __u32 *second;
};

/* The word of the longest prefix that holds `address` (host order). */
FP_INLINE __u32 fp_lookup(void *snapshot, struct fp_trail *trail, __u32 address)
{
    __u32 index = address >> 24;
    if (!trail->first || trail->first_at != index) {
        trail->first = bpf_map_lookup_elem(snapshot, &index);
        trail->first_at = index;
        if (!trail->first)
            return FP_BPF_NONE;
    }
    __u32 word = trail->first[(address >> 16) & 0xff];
    if (!(word & FP_BPF_POINTER))
        return word;
    index = word & ~FP_BPF_POINTER;
    if (!trail->second || trail->second_at != index) {
        trail->second = bpf_map_lookup_elem(snapshot, &index);
        trail->second_at = index;
        if (!trail->second)
            return FP_BPF_NONE;
    }
    word = trail->second[(address >> 8) & 0xff];
    if (!(word & FP_BPF_POINTER))
        return word;
    index = word & ~FP_BPF_POINTER;
    const __u32 *third = bpf_map_lookup_elem(snapshot, &index);
    return third ? third[address & 0xff] : FP_BPF_NONE;
}

/* The same for an IPv6 address, as a number of 128 bits. */
FP_INLINE __u32 fp_lookup6(void *snapshot, const struct fp_bpf_header *header, __u64 high, __u64 low)
{
    __u32 word = header->root6, shift = (header->shared6 & 7) * 8;
    if (!word || ((high ^ header->prefix6[0]) & header->mask6[0]) || ((low ^ header->prefix6[1]) & header->mask6[1]))
        return FP_BPF_NONE;
    if (header->shared6 & 8) {
        high = low;
        low = 0;
    }
    if (shift) {
        high = high << shift | low >> (64 - shift);
        low <<= shift;
    }
    for (int byte = 0; byte < 16; byte++) {
        __u32 index = word & ~FP_BPF_POINTER;
        const __u32 *chunk = bpf_map_lookup_elem(snapshot, &index);
        if (!chunk)
            return FP_BPF_NONE;
        word = chunk[high >> 56];
        if (!(word & FP_BPF_POINTER))
            return word;
        high = high << 8 | low >> 56;
        low <<= 8;
    }
    return FP_BPF_NONE;
}

FP_INLINE const struct fp_bpf_hop *fp_hop_at(void *snapshot, __u32 hop)
{
    __u32 index = FP_BPF_HOPS_CHUNK + hop / FP_BPF_HOPS_PER_CHUNK;
    const struct fp_bpf_hop *chunk = bpf_map_lookup_elem(snapshot, &index);
    return chunk ? &chunk[hop & (FP_BPF_HOPS_PER_CHUNK - 1)] : (void *)0;
}

/* The hop of a word, or NULL: no route, or local. */
FP_INLINE const struct fp_bpf_hop *fp_hop(void *snapshot, __u32 word)
{
    return word < FP_BPF_FIRST_HOP ? (void *)0 : fp_hop_at(snapshot, word - FP_BPF_FIRST_HOP);
}

/* Whether any hop has this address: tells "unknown peer" from "spoofed". At most 2^17 hops, so 17 steps find it. */
FP_INLINE _Bool fp_knows(void *snapshot, __u32 hops, const struct fp_address *address)
{
    __u32 low = 0, high = hops;
    for (int step = 0; step < 18 && low < high; step++) {
        __u32 middle = low + (high - low) / 2;
        const struct fp_bpf_hop *hop = fp_hop_at(snapshot, middle);
        if (!hop)
            return 0;
        if (fp_is_same(&hop->address, address))
            return 1;
        if (hop->address.high < address->high || (hop->address.high == address->high && hop->address.low < address->low))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

FP_INLINE __u64 *fp_slot(void *map, __u32 hash)
{
    __u32 slot = hash & (FP_BPF_SLOTS - 1);
    return bpf_map_lookup_elem(map, &slot);
}

/*
 * A note about a peer, one word so that it is stored at once: key << 32 | time << 7 | units of 520 bytes. Two peers of one
 * slot overwrite each other's notes but never read them as their own: the key is the IPv4 address, or 32 bits mixed from the IPv6 one.
 */
#define FP_NOTE_TICK_SHIFT 27 /* ticks of 134 ms; 25 bits of them last for 52 days */
#define FP_NOTE_TICKS 4u      /* a note holds for 0.6 s: so long may a path that changes swallow superpackets */

FP_INLINE __u32 fp_peer_key(const struct fp_address *address)
{
    if (!address->high && address->low >> 32 == 0xffff)
        return (__u32)address->low;
    return (__u32)((address->high * 0x9e3779b97f4a7c15ULL + address->low) * 0xd6e8feb86659fd93ULL >> 32);
}

FP_INLINE __u32 fp_units(__u32 bytes)
{
    return (bytes + FP_BPF_UNIT_BYTES - 1) / FP_BPF_UNIT_BYTES;
}

FP_INLINE __u64 *fp_note(void *map, __u32 peer)
{
    return fp_slot(map, peer ^ peer >> 12 ^ peer >> 24);
}

FP_INLINE __u32 fp_note_units(const __u64 *note, __u32 peer)
{
    __u64 word = note ? *note : 0;
    if (!word || word >> 32 != peer)
        return 0;
    __u32 age = (__u32)(bpf_ktime_get_ns() >> FP_NOTE_TICK_SHIFT) - (__u32)(word >> 7 & 0x1ffffff);
    return (age & 0x1ffffff) <= FP_NOTE_TICKS ? word & 0x7f : 0;
}

/*
 * Write down `units` about a peer. A note that says more stays until it is too old: what proves less does not prove it again.
 */
FP_INLINE void fp_note_set(__u64 *note, __u32 peer, __u32 units)
{
    if (!note || fp_note_units(note, peer) > units)
        return;
    __u32 now = (__u32)(bpf_ktime_get_ns() >> FP_NOTE_TICK_SHIFT) & 0x1ffffff;
    __u64 word = (__u64)peer << 32 | (__u64)now << 7 | units;
    if (word != *note) /* the line stays shared between CPUs while nothing is new */
        *note = word;
}

#endif
