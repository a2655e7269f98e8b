/*
 * verdicts.h: the one list of what becomes of a packet, for the userspace core (flanpy.h) and the BPF programs (bpf/).
 * Nothing but the preprocessor and an enum in here: BPF objects are built without the C library.
 */
#ifndef FLANPY_VERDICTS_H
#define FLANPY_VERDICTS_H

/*
 * What becomes of a packet. One list makes the C enum, the names in Python and in metrics, the BPF side's counters and the
 * docs. X(SYMBOL, "name", "meaning"). Append only: the numbers are part of the layout of the counters.
 */
#define FP_VERDICTS(X)                                                                                                        \
    X(ENCAPSULATED, "encapsulated", "sent to a peer")                                                                         \
    X(DECAPSULATED, "decapsulated", "delivered to this node")                                                                 \
    X(DROP_TRUNCATED, "drop_truncated", "shorter than its header or than its own total length says")                          \
    X(DROP_BAD_HEADER, "drop_bad_header", "neither IPv4 nor IPv6, a header length that cannot be, or a wrong header checksum")\
    X(DROP_BAD_OFFLOAD, "drop_bad_offload", "offload fields that contradict the packet (gso_size 0, wrong type)")             \
    X(DROP_NO_ROUTE, "drop_no_route", "no peer has the destination; answered with ICMP net unreachable (IPv6: no route)")     \
    X(DROP_TTL, "drop_ttl", "time to live used up; answered with ICMP time exceeded")                                         \
    X(DROP_TOO_BIG, "drop_too_big", "does not fit and must not be fragmented; answered with ICMP fragmentation needed (IPv6: packet too big)")\
    X(DROP_MARTIAN, "drop_martian", "a source or destination that is never forwarded (multicast, loopback, 0.0.0.0/8; IPv6 also link-local, ::/80)")\
    X(DROP_UNKNOWN_PEER, "drop_unknown_peer", "the outer sender is not a peer")                                               \
    X(DROP_SPOOFED, "drop_spoofed", "the inner source does not belong to the outer sender")                                   \
    X(DROP_NOT_LOCAL, "drop_not_local", "the inner destination is not ours")                                                  \
    X(DROP_SEND, "drop_send", "the underlay did not take it (ENOBUFS, EPERM, unreachable)")                                   \
    X(DROP_WRITE, "drop_write", "the TUN device did not take it")                                                             \
    X(ICMP_SENT, "icmp_sent", "ICMP error sent to the inner source")                                                          \
    X(ICMP_LIMITED, "icmp_limited", "ICMP error not sent: rate limit, or never to be answered (RFC 1122 3.2.2, RFC 4443 2.4)")\
    X(DROP_ECN, "drop_ecn", "outer CE on a packet that is not ECN capable (RFC 6040 4.2)")

enum fp_verdict {
#define FP_ENUM(symbol, name, meaning) FP_##symbol,
    FP_VERDICTS(FP_ENUM)
#undef FP_ENUM
    FP_VERDICT_COUNT,
    FP_FULL = 255 /* not an outcome: no room left, flush and offer the same packet again */
};

#endif
