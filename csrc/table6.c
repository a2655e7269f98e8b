/*
 * table6.c: look up an IPv6 address in a table, and check that part of a blob that somebody else mapped.
 *
 *   address -> slot -> the ranges between this slot's and the next one's first -> binary search -> leaf
 */
#include "table.h"

struct fp_leaf fp_table_leaf6(const struct fp_table *table, const uint8_t *destination)
{
    if (table->ranges6 == 0)
        return (struct fp_leaf){FP_HOP_NONE, 0};
    struct fp_key6 key = fp_key6_load(destination);
    const struct fp_range6 *ranges = fp_table_ranges6(table);
    uint32_t low = 0, high = 1; /* below the base there is one range alone */
    if (!fp_key6_less(key, table->base6)) {
        const uint32_t *slots = fp_table_slots6(table);
        uint64_t slot = fp_key6_shifted(fp_key6_minus(key, table->base6), table->shift6);
        /* Beyond the last range's first address nothing changes any more. */
        if (slot >= table->slots6)
            slot = table->slots6 - 1;
        low = slots[slot];
        high = slots[slot + 1] + 1;
    }
    /* Halves each time: at most 25 steps for FP_TABLE_ROUTES6_MAX. */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (fp_key6_less(key, ranges[middle].first))
            high = middle;
        else
            low = middle;
    }
    return ranges[low].leaf;
}

uint32_t fp_table_lookup6(const struct fp_table *table, const uint8_t *destination)
{
    return fp_leaf_hop(fp_table_leaf6(table, destination));
}

static bool ranges_fit(const struct fp_table *table)
{
    const struct fp_range6 *ranges = fp_table_ranges6(table);
    /* Every address is in a range: the first one begins at ::, each later one above the one before. */
    if (ranges[0].first.high != 0 || ranges[0].first.low != 0)
        return false;
    for (uint32_t i = 0; i < table->ranges6; i++) {
        if (!fp_table_leaf_fits(table, ranges[i].leaf) || (i > 0 && !fp_key6_less(ranges[i - 1].first, ranges[i].first)))
            return false;
    }
    return true;
}

static bool slots_fit(const struct fp_table *table)
{
    const uint32_t *slots = fp_table_slots6(table);
    if (table->slots6 == 0 || table->slots6 > FP_TABLE_SLOTS_MAX || table->shift6 > 127 || slots[table->slots6] >= table->ranges6)
        return false;
    for (uint32_t i = 0; i < table->slots6; i++) {
        /* Ascending, so that none leads past the ranges and a search never runs backwards. */
        if (slots[i] > slots[i + 1])
            return false;
    }
    return true;
}

bool fp_table6_fits(const struct fp_table *table)
{
    return table->ranges6 == 0 || (table->ranges6 <= 2 * FP_TABLE_ROUTES6_MAX + 1 && ranges_fit(table) && slots_fit(table));
}
