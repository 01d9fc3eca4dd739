// What scores of captions take longest for, called from Python by ctypes
// (src/captioner/evaluation/compiled.py): no Python and no PyTorch here.
//
// Legend: I images, S references, R = I + S rows of sentences (of each image the hypothesis, then
// its references), N words, V different words. Sentences stand one after another: `words` [N], and
// `starts` [sentences + 1], where each begins. Arrays are the caller's; what is written is `out`.
// An int that is returned is 0, or 1 where memory is lacking. No result depends on `threads`.
#pragma once

#include <cstdint>

#define CAPTIONER_API extern "C" __attribute__((visibility("default")))

// Raised with every change of this header: Python takes no library of another version.
constexpr int64_t kScoringVersion = 2;

CAPTIONER_API int64_t captioner_scoring_version();

// -- text -----------------------------------------------------------------------------------------

// Numbers what stands between spaces, in order of first occurrence. `text` are captions, each ended
// by a line feed.
CAPTIONER_API int captioner_pieces(
    const char* text, int64_t size,
    int32_t* pieces_out,  // [at most size / 2]
    int64_t* counts_out,  // [captions] pieces of each
    int64_t* first_out,   // [at most size / 2] where each piece begins
    int64_t* last_out,    // [at most size / 2] and where it ends
    int64_t* distinct_out);

// The English Snowball stems of words, as nltk's stemmer has them; each word and stem is ended by a
// line feed. No stem is longer than its word.
CAPTIONER_API int captioner_stems(const char* words, int64_t size, char* out, int64_t* size_out);

// -- overlap --------------------------------------------------------------------------------------

// What BLEU and CIDEr-D are made of, n-grams of one to four words: see evaluation/ngrams.py.
CAPTIONER_API int captioner_ngrams(
    const int32_t* words, const int64_t* starts,  // [N], [R + 1]
    const int64_t* first_row,                     // [I + 1] the row of each image's hypothesis
    int64_t images, int64_t vocabulary,
    const double* rarity,  // [I + 1] of an n-gram that so many images have in a reference
    int64_t threads,
    double* matches_out,  // [I, 4] n-grams of the hypothesis that a reference has, clipped
    double* norms_out,    // [4, R] squared lengths of the vectors of weights
    double* clipped_out, double* plain_out);  // [4, R] of a reference's row: products; else 0

// The longest common subsequence of each reference with its image's hypothesis. Of two empty
// sentences it is 1.
CAPTIONER_API int captioner_lcs(const int32_t* words, const int64_t* starts,
                                const int64_t* first_row, int64_t images, int64_t threads,
                                int64_t* out);  // [S]

// -- METEOR-py ------------------------------------------------------------------------------------

// The words that METEOR-py knows of: see evaluation/meteor_words.py.
struct WordMatches;

CAPTIONER_API WordMatches* captioner_words_new(
    const char* words, int64_t size,  // [V] words, each ended by a line feed
    const int32_t* stems,             // [V] equal where the stems are
    const uint8_t* is_function_word,  // [V]
    const int32_t* synset_starts,     // [V + 1]
    const int32_t* synsets);          // sorted for each word
CAPTIONER_API void captioner_words_free(WordMatches* known);

// Takes from a packed table the paraphrases whose words are known.
CAPTIONER_API int captioner_words_paraphrases(WordMatches* known, const int32_t* packed);

// METEOR's table of paraphrases as it is made: it reads the text in parts, three lines an entry: a
// probability and two phrases. The packed form (paraphrases.h) lives as long as the table.
class ParaphraseTable;

CAPTIONER_API ParaphraseTable* captioner_table_new();
CAPTIONER_API void captioner_table_free(ParaphraseTable* table);
CAPTIONER_API int captioner_table_read(ParaphraseTable* table, const char* text, int64_t size);
CAPTIONER_API int captioner_table_pack(ParaphraseTable* table, const int32_t** packed_out,
                                       int64_t* size_out);

// The six statistics of each reference and its image's hypothesis: see meteor.py's `statistics`.
CAPTIONER_API int captioner_meteor(const WordMatches* known, const int32_t* words,
                                   const int64_t* starts, const int64_t* first_row, int64_t images,
                                   int64_t threads, double* out);  // [S, 6]
