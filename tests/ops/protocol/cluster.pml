/* How the blocks of a cluster hand on a step's results: class ByCluster of csrc/cuda/exchange.h,
   called by forward_steps and backward_steps (keep, hand_on, await).

   BLOCKS blocks of WARPS warps take STEPS steps. In a step every warp waits for the step before,
   reads its block's place for that step's results, keeps its own in the other place, and, after the
   block's barrier, pushes its part of the block's results into that place of all other blocks; then
   it arrives at the cluster's barrier. The two places change roles. Modelled: both barriers, whose
   turn a place is and who still reads it. A read that finds results of another step, a write to a
   place that somebody still reads, a write to a block that has ended, and not to come to an end are
   errors. Not modelled: what is computed, rows, the order of memory beyond the barriers: all pushes
   of a warp come before its arrival (arrive.release), all reads after its wait (wait.acquire).

   The mistakes that the test makes, by -D: NO_WAIT (for the cluster), NO_SYNC (before the push),
   ONE_PLACE (for all steps), NOT_BEGUN (a block may begin late, and nobody waits for that),
   PUSH_LAST (also after the last step, when others may have ended). */

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
#define ALL (BLOCKS * WARPS)
#ifdef ONE_PLACE
#define PLACE(step) 0
#else
#define PLACE(step) ((step) % 2)
#endif
/* The results of warp `from` in place `p` of block `b`: the step that they are of, from 1. */
#define CONTENT(b, p, from) content[((b) * 2 + (p)) * ALL + (from)]

byte content[BLOCKS * 2 * ALL];
byte readers[BLOCKS * 2];
byte kept[ALL], ordered[ALL];  /* steps whose results a warp has kept; before its block's barrier */
byte waiting[BLOCKS], arrived;
bool turn[BLOCKS], round;
byte begun[BLOCKS], ended[BLOCKS], done;

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
       :: k < WARPS -> ordered[WARP(b, k)] = kept[WARP(b, k)]; k++
       :: else -> break
       od
    :: else
    fi
  }
  turn[b] != mine
}

/* barrier.cluster.arrive and .wait */
inline arrive() {
  atomic {
    own = round;
    arrived++;
    if
    :: arrived == ALL -> arrived = 0; round = !round
    :: else
    fi
  }
}
inline wait() { round != own }

/* A warp's own results go into its block's next place. */
inline keep(b, w, step) {
  atomic {
    assert(readers[b * 2 + PLACE(step)] == 0);
    CONTENT(b, PLACE(step), WARP(b, w)) = step;
    kept[WARP(b, w)] = step
  }
}

/* A warp copies its share of all that its block has kept; the shares are not the warps' own. */
inline push(b, w, step) {
  k = (w + 1) % WARPS;
  assert(ordered[WARP(b, k)] == step);
  for (other : 0 .. BLOCKS - 1) {
    if
    :: other != b ->
       atomic {
         assert(begun[other] == WARPS && ended[other] == 0);
         assert(readers[other * 2 + PLACE(step)] == 0);
         CONTENT(other, PLACE(step), WARP(b, k)) = step
       }
    :: else
    fi
  }
}

proctype warp(byte b; byte w) {
  byte step, k, other;
  bool mine, own;
  begun[b]++;
#ifndef NOT_BEGUN
  arrive();
  wait();
#endif
  for (step : 1 .. STEPS) {
    if
    :: step > 1 ->
#ifndef NO_WAIT
       wait();
#endif
       readers[b * 2 + PLACE(step - 1)]++;
       atomic {
         k = 0;
         do
         :: k < ALL -> assert(CONTENT(b, PLACE(step - 1), k) == step - 1); k++
         :: else -> break
         od
       }
       readers[b * 2 + PLACE(step - 1)]--
    :: else
    fi;
    barrier(b); /* the partial sums of all warps are there */
    keep(b, w, step);
    if
#ifdef PUSH_LAST
    :: true ->
#else
    :: step < STEPS ->
#endif
#ifndef NO_SYNC
       barrier(b);
#endif
       push(b, w, step);
       arrive()
#ifndef PUSH_LAST
    :: else
#endif
    fi
  }
  ended[b]++;
  done++
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
  done == ALL
}
