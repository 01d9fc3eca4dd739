/* How the blocks of a group exchange a step's results by flags: class FlagExchange of
   csrc/cuda/exchange.h, called by forward_steps and backward_steps (wait, store, publish).

   BLOCKS blocks of WARPS warps take STEPS steps. In a step every warp waits for the step before,
   reads what all warps of all blocks have stored in it, and stores its own. Every step has memory of
   its own. Modelled: the barrier of a block, flags, and the memory model: a store is visible to another
   block only through a release that follows it and an acquire that reads that release; a barrier
   makes what one warp of a block has seen or stored visible to all of them. Reading what need not be
   visible is an error, and so is a deadlock. Not modelled: what is computed, groups (which share
   nothing), rows, warps of the same block in lockstep.

   The faults that the test plants, by -D: NO_WAIT, NO_SYNC (before the flag), EARLY (the flag before
   the stores), RELAXED (the flag does not release), STALE (flags of the launch before), ABSENT (a
   block that is not resident until another ends), LAST_ONE (a flag is raised to a step too few). */

#ifndef BLOCKS
#define BLOCKS 2
#endif
#ifndef WARPS
#define WARPS 2
#endif
#ifndef STEPS
#define STEPS 3
#endif
#define WARP(b, w) ((b) * WARPS + (w))

byte flag[BLOCKS];                      /* steps that a block says it has done */
byte stored[BLOCKS * WARPS];            /* steps whose results a warp has stored */
byte ordered[BLOCKS * WARPS];           /* of these, before the last barrier of its block */
byte released[BLOCKS * WARPS];          /* of these, before the last release of its block */
byte seen[BLOCKS * BLOCKS * WARPS];     /* what a block has acquired of a warp */
byte waiting[BLOCKS];                   /* warps at their block's barrier */
bool turn[BLOCKS];                      /* changes whenever that barrier opens */
byte ended;

/* __syncthreads() */
inline barrier(b) {
  atomic {
    mine = turn[b];
    waiting[b]++;
    if
    :: waiting[b] == WARPS ->
       waiting[b] = 0;
       turn[b] = !turn[b];
       k = 0;
       do
       :: k < WARPS -> ordered[WARP(b, k)] = stored[WARP(b, k)]; k++
       :: else -> break
       od
    :: else
    fi
  }
  turn[b] != mine
}

/* store_release by the first thread of a block */
inline release(b, steps) {
  atomic {
    flag[b] = steps;
#ifndef RELAXED
    k = 0;
    do
    :: k < WARPS -> released[WARP(b, k)] = ordered[WARP(b, k)]; k++
    :: else -> break
    od
#endif
  }
}

/* load_acquire until the flag of block `from` says so many steps */
inline acquire(b, from, steps) {
  atomic {
    flag[from] >= steps;
    k = 0;
    do
    :: k < WARPS ->
       if
       :: seen[b * BLOCKS * WARPS + WARP(from, k)] < released[WARP(from, k)] ->
          seen[b * BLOCKS * WARPS + WARP(from, k)] = released[WARP(from, k)]
       :: else
       fi;
       k++
    :: else -> break
    od
  }
}

/* The GEMM reads what every warp has stored in the step before. */
inline read_all(b, steps) {
  atomic {
    k = 0;
    do
    :: k < BLOCKS * WARPS ->
       if
       :: k / WARPS == b -> assert(ordered[k] >= steps)
       :: else -> assert(seen[b * BLOCKS * WARPS + k] >= steps)
       fi;
       k++
    :: else -> break
    od
  }
}

proctype warp(byte b; byte w) {
  byte t, k, other;
  bool mine;
#ifdef ABSENT
  if
  :: b == BLOCKS - 1 -> ended >= WARPS
  :: else
  fi;
#endif
  for (t : 0 .. STEPS - 1) {
    if
    :: t > 0 ->
#ifndef NO_WAIT
       if
       :: w == 0 ->
          for (other : 0 .. BLOCKS - 1) {
            acquire(b, other, t)
          }
       :: else
       fi;
       barrier(b);
#endif
       read_all(b, t)
    :: else
    fi;
    barrier(b); /* all partial sums are written */
#ifdef EARLY
    if
    :: w == 0 -> release(b, t + 1)
    :: else
    fi;
#endif
    stored[WARP(b, w)] = t + 1;
#ifndef NO_SYNC
    barrier(b);
#endif
#ifndef EARLY
    if
#ifdef LAST_ONE
    :: w == 0 -> release(b, t)
#else
    :: w == 0 -> release(b, t + 1)
#endif
    :: else
    fi
#endif
  }
  ended++
}

init {
  byte b, w;
  atomic {
    for (b : 0 .. BLOCKS - 1) {
#ifdef STALE
      flag[b] = STEPS;
#endif
      for (w : 0 .. WARPS - 1) {
        run warp(b, w)
      }
    }
  }
  ended == BLOCKS * WARPS
}
