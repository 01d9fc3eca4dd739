/* How the blocks of a group exchange tiles: forward_tiles and backward_tiles of csrc/cuda (request,
   publish_warp), csrc/cuda/tiled.h.

   BLOCKS blocks of WARPS warps compute STEPS steps of TILES tiles. Tile n depends on tile n - TILES.
   For a tile every warp waits for the counters of all blocks, copies its share of the rows into one
   of two buffers of its block, waits for its copies, meets its block at a barrier, reads the whole
   buffer, stores its results and publishes them by adding 1 to its block's counter. With three tiles
   a step or more, or without a dependency, the next tile is requested before this one is computed,
   else after it is published. Modelled: barrier, counters, buffers, and the memory model: what a warp
   has stored is visible to another block only through a release by that warp and an acquire that
   reads it or a later value. Reading what need not be visible, a buffer without its rows, a copy into
   a buffer that is being read, and a deadlock are errors. Not modelled: what is computed, groups.

   The faults that the test plants, by -D: NO_WAIT (for counters), NO_SYNC (the block's barrier),
   NO_COPY_WAIT, RELAXED (the counter does not release), TOO_EARLY (the next tile is always requested
   first), ONE_BUFFER, SHORT (waits for one tile less). */

#ifndef BLOCKS
#define BLOCKS 2
#endif
#ifndef WARPS
#define WARPS 2
#endif
#ifndef STEPS
#define STEPS 3
#endif
#ifndef TILES
#define TILES 1
#endif
#define ALL (STEPS * TILES)
#define WARP(b, w) ((b) * WARPS + (w))
#ifdef ONE_BUFFER
#define BUFFER(b, n) ((b) * 2)
#else
#define BUFFER(b, n) ((b) * 2 + (n) % 2)
#endif
#define CONTENT(b, n, w) content[BUFFER(b, n) * WARPS + (w)]

byte counter[BLOCKS];
byte stored[BLOCKS * WARPS];      /* tiles whose results a warp has stored */
byte released[BLOCKS * WARPS];    /* of these, before the warp's last release */
byte content[BLOCKS * 2 * WARPS]; /* the tile, from 1, whose rows a warp's share of a buffer has */
byte readers[BLOCKS * 2];
byte waiting[BLOCKS];
bool turn[BLOCKS];
byte ended;

inline barrier(b) {
  atomic {
    mine = turn[b];
    waiting[b]++;
    if
    :: waiting[b] == WARPS -> waiting[b] = 0; turn[b] = !turn[b]
    :: else
    fi
  }
  turn[b] != mine
}

inline request(b, w, n) {
  if
  :: n >= TILES ->
     for (other : 0 .. BLOCKS - 1) {
#ifndef NO_WAIT
#ifdef SHORT
       counter[other] >= WARPS * (n - TILES);
#else
       counter[other] >= WARPS * (n - TILES + 1);
#endif
#endif
       atomic {
         k = 0;
         do
         :: k < WARPS -> assert(released[WARP(other, k)] >= n - TILES + 1); k++
         :: else -> break
         od
       }
     }
  :: else
  fi;
  atomic {
    assert(readers[BUFFER(b, n)] == 0);
    CONTENT(b, n, w) = 0
  }
}

proctype warp(byte b; byte w) {
  byte n, k, other;
  bool mine, early;
  request(b, w, 0);
  do
  :: n < ALL ->
#ifndef NO_COPY_WAIT
     CONTENT(b, n, w) = n + 1;
#endif
#ifndef NO_SYNC
     barrier(b);
#endif
#ifdef TOO_EARLY
     early = n + 1 < ALL;
#else
     early = n + 1 < ALL && (n + 1 < TILES || TILES >= 3);
#endif
     if
     :: early -> request(b, w, n + 1)
     :: else
     fi;
     readers[BUFFER(b, n)]++;
     atomic {
       k = 0;
       do
       :: k < WARPS -> assert(CONTENT(b, n, k) == n + 1); k++
       :: else -> break
       od
     }
     readers[BUFFER(b, n)]--;
     stored[WARP(b, w)] = n + 1;
     atomic {
       counter[b]++;
#ifndef RELAXED
       released[WARP(b, w)] = stored[WARP(b, w)]
#endif
     }
     if
     :: !early && n + 1 < ALL -> request(b, w, n + 1)
     :: else
     fi;
     n++
  :: else -> break
  od;
  ended++
}

init {
  byte b, w;
  atomic {
    for (b : 0 .. BLOCKS - 1) {
      for (w : 0 .. WARPS - 1) {
        run warp(b, w)
      }
    }
  }
  ended == BLOCKS * WARPS
}
