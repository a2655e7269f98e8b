/*
 * heap_sort.h: sort items in place: no memory, no recursion, n log n also in the worst case, for what is sorted comes from other nodes.
 *
 * It is inline so that each caller's order and size become part of the loop.
 */
#ifndef FLANPY_HEAP_SORT_H
#define FLANPY_HEAP_SORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Does `a` come before `b`? Never true both ways. `context` is what the caller of the sort has given. */
typedef bool fp_before(const void *a, const void *b, const void *context);

/* The largest item that can be sorted: one is kept aside while two change places. */
#define FP_HEAP_SORT_ITEM_MAX 32

static inline void fp_heap_swap(uint8_t *a, uint8_t *b, size_t size)
{
    uint8_t kept[FP_HEAP_SORT_ITEM_MAX];
    memcpy(kept, a, size);
    memcpy(a, b, size);
    memcpy(b, kept, size);
}

/* Let the item at `root` sink until none of its children comes after it. */
static inline void fp_heap_sink(uint8_t *items, size_t root, size_t count, size_t size, fp_before *before, const void *context)
{
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && before(items + child * size, items + (child + 1) * size, context))
            child++;
        if (!before(items + root * size, items + child * size, context))
            return;
        fp_heap_swap(items + root * size, items + child * size, size);
    }
}

/* Sort `count` items of `size` bytes (at most FP_HEAP_SORT_ITEM_MAX; a larger size is a defect of the caller and sorts nothing). */
static inline void fp_heap_sort(void *first, size_t count, size_t size, fp_before *before, const void *context)
{
    uint8_t *items = first;
    if (size > FP_HEAP_SORT_ITEM_MAX)
        return;
    for (size_t i = count / 2; i-- > 0;)
        fp_heap_sink(items, i, count, size, before, context);
    for (size_t left = count; left-- > 1;) {
        fp_heap_swap(items, items + left * size, size);
        fp_heap_sink(items, 0, left, size, before, context);
    }
}

#endif
