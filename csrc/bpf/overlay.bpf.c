/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * overlay.bpf.c: flannel's udp wire format inside the kernel: four programs at tc, run for each packet or superpacket.
 *
 *   fp_encap   egress of flannel0        inner packet -> | Ethernet | IPv4 or IPv6 | UDP | inner | -> underlay
 *   fp_decap   ingress of the underlay   the same back -> ingress of flannel0 (or the pod bridge, or the merging device)
 *   fp_bypass  ingress of the pod bridge as fp_encap, for packets whose forwarding by the host is to be skipped
 *   fp_merged  ingress of the merging device's far end -> ingress of flannel0
 *
 * They take what they can handle whole and leave everything else, unchanged, to the stack (FP_TC_NEXT), where the userspace
 * datapath finds it in the TUN device's queue or in its UDP socket and deals with it by its own rules. So a packet that needs
 * an ICMP error, reassembly, cutting or finishing has the same outcome as without BPF. Nothing is changed in a packet
 * before the last check; after that a failure can only drop it (FP_DROP_SEND, FP_DROP_WRITE).
 *
 * Which half takes it must not change the order inside a flow. Outgoing, it depends on the peer and on bulk: for UDP, whether the same
 * two pods lately had superpackets; for TCP to a peer that merges trains, whether the flow lately had large segments. Incoming, the
 * sender has decided: a UDP checksum of zero marks packets of these programs, while a socket always fills it, and its packets (also
 * trains of them, UDP GSO and GRO) go to our socket, each after the other.
 *
 * Superpackets: the inner packet stays one, gso_size untouched, and the kernel or the device cuts inner packet and outer headers
 * together where the underlay needs it. Where it does not (veth: FP_BPF_CARRIES) only peers that say so get them whole.
 */
#include "decap.h"
#include "encap.h"

FP_SECTION("tc/fp_encap") int fp_encap(struct __sk_buff *skb)
{
    return fp_encapsulate(skb, 0);
}

FP_SECTION("tc/fp_bypass") int fp_bypass(struct __sk_buff *skb)
{
    /* Only what was sent to the host as a router; the bridge's own traffic is none of ours. */
    if (skb->pkt_type != FP_PACKET_HOST)
        return FP_TC_NEXT;
    return fp_encapsulate(skb, FP_ETHERNET_BYTES);
}

FP_SECTION("tc/fp_decap") int fp_decap(struct __sk_buff *skb)
{
    return fp_decapsulate(skb);
}

FP_SECTION("tc/fp_merged") int fp_merged(struct __sk_buff *skb)
{
    struct fp_run run;
    struct fp_inner inner;
    if (!fp_start(&run, skb) || bpf_skb_load_bytes(skb, FP_ETHERNET_BYTES, &inner, FP_IP4_BYTES) ||
        !fp_read_inner(skb, FP_ETHERNET_BYTES, &inner))
        return FP_TC_DROP;
    return fp_deliver(&run, &inner, 0);
}

/* What the loader (ebpf_programs.py) compares with its own before it loads anything. */
FP_SECTION("layout") const __u32 fp_layout = FP_BPF_LAYOUT;

/* bpf_fib_lookup asks for it. */
FP_SECTION("license") char fp_license[] = "GPL";
