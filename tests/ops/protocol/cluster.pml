/* How the blocks of a cluster exchange a step's results: class ClusterExchange of
   csrc/cuda/exchange.h, called by forward_steps and backward_steps (stage, publish, wait).

   BLOCKS blocks of WARPS warps take STEPS steps. In a step every warp waits for the previous step,
   reads its block's buffer of that step's results, stages its own in the other buffer, and, after the
   block's barrier, copies its part of the block's results into that buffer of all other blocks; then
   it arrives at the cluster's barrier. The two buffers alternate. Modelled: both barriers, which step
   a buffer belongs to and who still reads it. A read that finds results of another step, a write to
   a buffer that is still being read, a write to a block that has ended and a deadlock are errors. Not
   modelled: what is computed, rows, memory order beyond the barriers: all copies of a warp come
   before its arrival (arrive.release), all reads after its wait (wait.acquire).

   The faults that the test plants, by -D: NO_WAIT (for the cluster), NO_SYNC (before the copy),
   ONE_BUFFER (for all steps), NOT_BEGUN (a block may begin late and is not waited for), PUBLISH_LAST
   (also after the last step, when other blocks may have ended). */

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
#ifdef ONE_BUFFER
#define BUFFER(step) 0
#else
#define BUFFER(step) ((step) % 2)
#endif
/* The results of warp `from` in buffer `p` of block `b`: the step that they are of, from 1. */
#define CONTENT(b, p, from) content[((b) * 2 + (p)) * ALL + (from)]

byte content[BLOCKS * 2 * ALL];
byte readers[BLOCKS * 2];
byte staged[ALL], ordered[ALL];  /* steps whose results a warp has staged; before its block's barrier */
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
       :: k < WARPS -> ordered[WARP(b, k)] = staged[WARP(b, k)]; k++
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

/* A warp's own results go into its block's write buffer. */
inline stage(b, w, step) {
  atomic {
    assert(readers[b * 2 + BUFFER(step)] == 0);
    CONTENT(b, BUFFER(step), WARP(b, w)) = step;
    staged[WARP(b, w)] = step
  }
}

/* A warp copies its share of what its block has staged; the shares are not the warps' own. */
inline publish(b, w, step) {
  k = (w + 1) % WARPS;
  assert(ordered[WARP(b, k)] == step);
  for (other : 0 .. BLOCKS - 1) {
    if
    :: other != b ->
       atomic {
         assert(begun[other] == WARPS && ended[other] == 0);
         assert(readers[other * 2 + BUFFER(step)] == 0);
         CONTENT(other, BUFFER(step), WARP(b, k)) = step
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
       readers[b * 2 + BUFFER(step - 1)]++;
       atomic {
         k = 0;
         do
         :: k < ALL -> assert(CONTENT(b, BUFFER(step - 1), k) == step - 1); k++
         :: else -> break
         od
       }
       readers[b * 2 + BUFFER(step - 1)]--
    :: else
    fi;
    barrier(b); /* all partial sums are written */
    stage(b, w, step);
    if
#ifdef PUBLISH_LAST
    :: true ->
#else
    :: step < STEPS ->
#endif
#ifndef NO_SYNC
       barrier(b);
#endif
       publish(b, w, step);
       arrive()
#ifndef PUBLISH_LAST
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
