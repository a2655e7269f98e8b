/*
 * names.h: the lists of flanpy.h and worker.h as text, so that Python, metrics and documents have the one list.
 */
#ifndef FLANPY_NAMES_H
#define FLANPY_NAMES_H

/* Of enum fp_verdict and enum fp_work_counter; NULL past the end. */
const char *fp_verdict_name(unsigned verdict);
const char *fp_verdict_meaning(unsigned verdict);
const char *fp_work_name(unsigned counter);
const char *fp_work_meaning(unsigned counter);

#endif
