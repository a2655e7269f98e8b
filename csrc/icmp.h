/*
 * icmp.h: what icmp.c hands on to icmp6.c.
 */
#ifndef FLANPY_ICMP_H
#define FLANPY_ICMP_H

#include "ip.h"

/* fp_icmp_error for a packet of version 6. */
size_t fp_icmp6_error(const struct fp_context *context, enum fp_verdict verdict, const uint8_t *packet, size_t bytes,
                      uint32_t next_hop_mtu, uint8_t *out, size_t out_bytes);

#endif
