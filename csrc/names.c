/*
 * names.c: names and meanings of verdicts and work counters, made from the X-macros.
 */
#include "names.h"

#include "worker.h"

#define FP_NAME(symbol, name, meaning) name,
#define FP_MEANING(symbol, name, meaning) meaning,

const char *fp_verdict_name(unsigned verdict)
{
    static const char *const names[] = {FP_VERDICTS(FP_NAME)};
    return verdict < FP_VERDICT_COUNT ? names[verdict] : NULL;
}

const char *fp_verdict_meaning(unsigned verdict)
{
    static const char *const meanings[] = {FP_VERDICTS(FP_MEANING)};
    return verdict < FP_VERDICT_COUNT ? meanings[verdict] : NULL;
}

const char *fp_work_name(unsigned counter)
{
    static const char *const names[] = {FP_WORK_COUNTERS(FP_NAME)};
    return counter < FP_WORK_COUNT ? names[counter] : NULL;
}

const char *fp_work_meaning(unsigned counter)
{
    static const char *const meanings[] = {FP_WORK_COUNTERS(FP_MEANING)};
    return counter < FP_WORK_COUNT ? meanings[counter] : NULL;
}
