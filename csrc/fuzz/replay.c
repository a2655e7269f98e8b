/*
 * replay.c: run a fuzz target once on each file that is named; the end of a process without a message is success. Needs no libFuzzer.
 */
#include "fuzz.h"

enum { INPUT_BYTES_MAX = 1 << 20 };

int main(int count, char **names)
{
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        if (file == NULL) {
            perror(names[i]);
            return 1;
        }
        uint8_t *data = malloc(INPUT_BYTES_MAX);
        size_t bytes = fread(data, 1, INPUT_BYTES_MAX, file);
        fclose(file);
        data = realloc(data, bytes > 0 ? bytes : 1); /* exactly the input's size, so that a step past it is seen */
        LLVMFuzzerTestOneInput(data, bytes);
        free(data);
    }
    printf("%d inputs\n", count - 1);
    return 0;
}
