/*
 * table.c: look up in a longest-prefix-match blob, and check a blob that somebody else mapped. Builds nothing; IPv6 is table6.c's.
 *
 * A lookup is bounded by three steps and has no loop. It trusts the blob: whoever maps one calls fp_table_check once, on memory that
 * nobody can write any more.
 */
#include "table.h"

#include <errno.h>

uint32_t fp_table_lookup4(const struct fp_table *table, uint32_t destination)
{
    return fp_leaf_hop(fp_table_leaf4(table, destination));
}

const struct fp_hop *fp_table_hop(const struct fp_table *table, uint32_t hop)
{
    return hop < table->hops ? &fp_table_hops(table)[hop] : NULL;
}

uint64_t fp_table_generation(const struct fp_table *table)
{
    return table->generation;
}

uint32_t fp_table_mtu(const struct fp_table *table)
{
    return table->mtu_bytes;
}

size_t fp_table_size(const struct fp_table *table)
{
    return table->bytes;
}

bool fp_table_knows_address(const struct fp_table *table, const struct fp_address *address)
{
    const uint32_t *order = fp_table_by_address(table);
    const struct fp_hop *hops = fp_table_hops(table);
    /* Halves each time: at most 24 steps for FP_TABLE_HOPS_MAX. */
    for (uint32_t low = 0, high = table->hops; low < high;) {
        uint32_t middle = low + (high - low) / 2;
        int compared = memcmp(&hops[order[middle]].address, address, sizeof *address);
        if (compared == 0)
            return true;
        if (compared < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/* ------------------------------------------------------------------------------------------------------------- check */

/* Does the area lie behind the root, in the blob, on its alignment? `count` is below 2^32 and `each` small: no overflow. */
static bool area_fits(const struct fp_table *table, uint64_t at, uint64_t count, uint64_t each, uint64_t align)
{
    return at % align == 0 && at >= sizeof *table && at <= table->bytes && count * each <= table->bytes - at;
}

static bool header_fits(const struct fp_table *table, size_t bytes)
{
    uint64_t nodes = (uint64_t)table->upper_nodes + table->lower_nodes;
    return table->magic == FP_TABLE_MAGIC && table->bytes == bytes && table->hops <= FP_TABLE_HOPS_MAX &&
           fp_table_mtu_fits(table->mtu_bytes) &&
           nodes < FP_TABLE_TAG_NODE >> 1 && area_fits(table, table->nodes_at, nodes, sizeof(struct fp_table_node), FP_TABLE_ALIGN) &&
           area_fits(table, table->leaves_at, table->leaves, sizeof(struct fp_leaf), 8) &&
           area_fits(table, table->hops_at, table->hops, sizeof(struct fp_hop), 8) &&
           area_fits(table, table->by_address_at, table->hops, 4, 4) &&
           area_fits(table, table->ranges6_at, table->ranges6, sizeof(struct fp_range6), 8) &&
           area_fits(table, table->slots6_at, (uint64_t)table->slots6 + 1, 4, 4);
}

/* Does a value of the root, or of an upper node, name a node that is there and of the level below? */
static bool is_node_of(uint32_t value, uint32_t first, uint32_t count)
{
    uint32_t node = value & ~FP_TABLE_TAG_MASK;
    return fp_table_is_node(value) && node >= first && node - first < count;
}

/* Upper nodes may name lower nodes, lower nodes nothing but hops: so a lookup ends, and a check is linear. */
static bool leaf_fits(const struct fp_table *table, struct fp_leaf leaf, bool upper)
{
    if (upper && leaf.key == 0 && is_node_of(leaf.value, table->upper_nodes, table->lower_nodes))
        return true;
    return fp_table_leaf_fits(table, leaf);
}

static bool node_fits(const struct fp_table *table, const struct fp_table_node *node, bool upper)
{
    uint32_t count = 0;
    for (uint32_t word = 0; word < 4; word++) {
        /* A wrong count before a word would read leaves beside the node's own. */
        if (node->before[word] != count)
            return false;
        count += fp_table_bits(node->begins[word]);
    }
    /* Without a first run, the entries before the first bit would have rank -1. */
    if ((node->begins[0] & 1) == 0)
        return false;
    /* All leaves of the node lie inside the blob, behind the root. */
    uint64_t first = node->leaves_at;
    if (first * sizeof(struct fp_leaf) < sizeof *table || (first + count) * sizeof(struct fp_leaf) > table->bytes)
        return false;
    const struct fp_leaf *leaves = (const struct fp_leaf *)(const void *)table + first;
    for (uint32_t i = 0; i < count; i++) {
        if (!leaf_fits(table, leaves[i], upper))
            return false;
    }
    return true;
}

static bool root_fits(const struct fp_table *table)
{
    for (size_t i = 0; i < FP_TABLE_ROOT; i++) {
        uint32_t value = table->root[i];
        struct fp_leaf right = fp_table_leaf_of(table, fp_leaf_hop((struct fp_leaf){value, 0}));
        if (!is_node_of(value, 0, table->upper_nodes) && !fp_table_leaf_fits(table, (struct fp_leaf){value, right.key}))
            return false;
    }
    return true;
}

static bool addresses_fit(const struct fp_table *table)
{
    const uint32_t *order = fp_table_by_address(table);
    const struct fp_hop *hops = fp_table_hops(table);
    for (uint32_t i = 0; i < table->hops; i++) {
        if (order[i] >= table->hops)
            return false;
        /* Out of order, the binary search would miss a peer and call its packets foreign. */
        if (i > 0 && memcmp(&hops[order[i - 1]].address, &hops[order[i]].address, sizeof hops->address) > 0)
            return false;
    }
    return true;
}

int fp_table_check(const void *memory, size_t bytes)
{
    const struct fp_table *table = memory;
    if (memory == NULL || (uintptr_t)memory % FP_TABLE_ALIGN != 0 || bytes < sizeof *table || !header_fits(table, bytes))
        return -EINVAL;
    const struct fp_table_node *nodes = fp_table_nodes(table);
    for (uint32_t i = 0; i < table->upper_nodes + table->lower_nodes; i++) {
        if (!node_fits(table, &nodes[i], i < table->upper_nodes))
            return -EINVAL;
    }
    return root_fits(table) && addresses_fit(table) && fp_table6_fits(table) ? 0 : -EINVAL;
}
