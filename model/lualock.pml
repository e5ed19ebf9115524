/*
 * A model of lualock for Spin: one lock on one server, callers that want it once each, a network
 * that delays and loses, and a resource that remembers the greatest fence. `make model` checks it.
 *
 * Every step may be arbitrarily late: callers are paused anywhere, also past their lease, and requests
 * arrive after whoever sent them has gone on, or asked again. Time may pass before any step, but only
 * while something runs out, so who has nothing to wait for acts in the end. A request that is lost
 * is one that arrives when it has no effect any more. Callers are alike, so they start in order; a
 * second acquisition has a fresh token, so here it is another caller.
 *
 * What must hold:
 *  (1) one caller at most believes that it has the lock, and not for longer than the server does;
 *  (2) a later turn has a greater fence; nothing is written after a greater fence; the write of who
 *      believes that it has the lock is accepted;
 *  (3) a token whose caller gave up, and was cleaned up after, has neither the lock nor a place any
 *      more; not cleaned up after, or killed, it has the lock for no longer than a window (given from
 *      the queue, unclaimed) or GHOST (a request takes it when it is just not late, and a lost claim
 *      comes as that lease ends);
 *  (4) who does not give up gets the lock or is told why not: no state without a next step in which
 *      somebody still waits; and no cycle (with -DNP), so that every behaviour gets there.
 *
 * Left out: extend, adopt, jobs, fair=False, priorities, max_waiters, running out of memory, and the
 * server's own faults (restart, failover, a clock that steps), after which there may be two holders.
 * Simpler than it is: time is in ticks; clocks run equally fast and are compared exactly; within a tick
 * TIME stands still, from one to the next it passes every fence. A waiter may look at every tick, and
 * must if nothing else happens; so nobody needs to be told that it is first (tell_first), or that
 * it took the lock itself (`+`). A ticket keeps its place also if the reply that told it was lost. The
 * record's `before` is missing: a repeated release that it would answer finds `missing` here. Nothing
 * stays in the queue of a killed waiter but its ticket (its connection breaks at once).
 *
 * A guard that is taken away (-D) must be missed:
 *   NO_DEADLINE  acquire and enqueue carry out what is late (3)     NO_OWNER  release asks nobody (1)
 *   NO_LATER  no second abandon when a lost request is late (3)     NO_FENCE  the resource does not look (2)
 *   NO_RAISE  a fence is the server's time alone (2)                NO_LOOK   waiters rely on messages (4)
 *   NO_BEFORE  a lease is counted from its reply (1)
 */
#ifndef CALLERS
#define CALLERS 3
#endif
#ifndef LOST
#define LOST 1                   /* how often a connection breaks under a request */
#endif
#ifndef KILLED
#define KILLED 1                 /* how many are killed, while they wait or hold */
#endif
#ifndef GIVE_UP
#define GIVE_UP 2                /* how many give up, anywhere on their way to the lock */
#endif
#ifdef SHORT
#define TTL 2
#define CLAIM 1
#define TOMBSTONE 1
#define DEADLINE 1
#else
#define TTL 3
#define CLAIM 2                  /* CLAIM_MS */
#define TOMBSTONE 2              /* TOMBSTONE_MS */
#define DEADLINE 2               /* for how long a reply is waited for */
#endif
#define GHOST (DEADLINE + 2 * TTL)
#define N 3
#define NOBODY N

mtype = { ACQUIRE, ENQUEUE, CLAIM_IT, RELEASE, HAND_OVER };                 /* requests */
mtype = { OURS, TAKEN, QUEUED, LATE, CLAIMED, MISSING, RELEASED, WAITED };  /* replies */

typedef Request { mtype verb; byte fence; byte due }    /* due: until its deadline */
typedef Caller {
  Request asked;                    /* under way; its reply is waited for */
  Request stray[2];                 /* under way; nobody will read the reply */
  mtype reply; byte fence; byte left;
  byte sent;                        /* how long a lease lasts that is counted from the last sending */
  byte expires;                     /* how long until the last request is late */
  bool ghost; byte linger;          /* a lost request may arrive still; until when */
  byte told; byte told_left;        /* a message: the fence that we were given, and what is certain */
  bool nap;                         /* waits for the time of its next look */
  byte valid;                       /* for how long it believes that the lock is its */
  bool abandoning; bool later;      /* sent behind its back: until carried out */
  bool gone; byte gone_for;         /* it has ended; for how long */
  bool killed; bool unknown;        /* killed; its release had an unknown outcome */
  bool queued; byte place           /* its ticket */
}
Caller who[N];
#define me who[c]

bool held; byte owner = NOBODY; byte fence; bool waited; byte left;   /* the record; no key: left 0 */
bool unclaimed;                     /* given from the queue, and neither claimed nor looked at since */
byte places;                        /* how many places have been given */
byte clock = 1; byte last;          /* TIME, as far as fences tell it; the last fence ever */
byte greatest;                      /* what the resource has seen */
byte started, lost, killed, gave_up;
hidden byte i, first, f, given;     /* the scripts' own, and what they answer */
hidden mtype reply; hidden byte reply_fence, reply_left;

#define cleaned(i) (who[i].gone && !who[i].abandoning && !who[i].later && !who[i].killed && !who[i].unknown)

inline check() {
  i = 0;
  do
  :: i < N ->
     assert(!who[i].valid || (held && owner == i && left >= who[i].valid));     /* (1) */
     assert(!cleaned(i) || (!who[i].queued && !(held && owner == i)));          /* (3) */
     i++
  :: else -> break
  od;
  i = 0
}

/* The scripts. */

inline next_fence() {               /* include/fence */
  f = clock;
#ifndef NO_RAISE
  if :: left && fence >= f -> f = fence + 1 :: else fi;
#endif
  assert(f > last);                 /* (2) */
  last = f
}

inline find_first() {               /* ZRANGE 0 0 */
  first = NOBODY; i = 0;
  do
  :: i < N ->
     if
     :: who[i].queued && (first == NOBODY || who[i].place < who[first].place) -> first = i
     :: else
     fi;
     i++
  :: else -> break
  od
}

inline pass_on(own) {               /* include/pass_on: to the first who is not dead */
  given = NOBODY;
  find_first();
  do
  :: given == NOBODY && first != NOBODY ->
     who[first].queued = false;
     if
     :: who[first].killed && first != own -> find_first()     /* PUBLISH: nobody hears it */
     :: else ->
        given = first;
        next_fence();
        held = true; owner = given; fence = f; waited = true;
        if
        :: given == own -> left = TTL; unclaimed = false
        :: else ->
           left = CLAIM; unclaimed = true;
           if :: !who[given].gone -> who[given].told = f; who[given].told_left = CLAIM :: else fi
        fi
     fi
  :: else -> break
  od
}

inline give_up() {                  /* include/give_up: hand over, or leave a tombstone */
  pass_on(NOBODY);
  if :: given == NOBODY -> held = false; waited = false; left = TOMBSTONE; unclaimed = false :: else fi
}

inline take(w) { next_fence(); held = true; owner = c; fence = f; left = TTL; waited = w; unclaimed = false }
inline answer(r) { reply = r; reply_fence = fence; reply_left = left }

#ifdef NO_DEADLINE
#define is_late(request) false
#else
#define is_late(request) (request.due == 0)
#endif
#ifdef NO_OWNER
#define is_ours(request) true
#else
#define is_ours(request) (owner == c && fence == request.fence)
#endif

inline serve(request) {
  if
  :: request.verb == ACQUIRE ->     /* acquire */
     if
     :: held && owner == c -> answer(OURS)                      /* 'owned' */
     :: held && owner != c -> answer(TAKEN)
     :: !held && is_late(request) -> answer(LATE)
     :: else -> take(left && waited); answer(OURS)
     fi
  :: request.verb == ENQUEUE ->     /* enqueue */
     if
     :: is_late(request) -> answer(LATE)
     :: !is_late(request) && held && owner == c -> left = TTL; unclaimed = false; answer(OURS)
     :: else ->
        if :: !me.queued -> me.queued = true; if :: !me.place -> places++; me.place = places :: else fi :: else fi;
        if
        :: held -> waited = true; answer(QUEUED)
        :: else ->
           pass_on(c);              /* to ourselves if nobody else waits */
           if
           :: given == c -> find_first(); waited = (first != NOBODY); answer(OURS)
           :: else -> answer(QUEUED)
           fi
        fi
     fi
  :: request.verb == CLAIM_IT ->    /* claim */
     if
     :: held && waited && owner == c && fence == request.fence ->
        left = TTL; unclaimed = false; answer(CLAIMED)
     :: else -> answer(MISSING)
     fi
  :: else ->                        /* release, hand_over */
     if
     :: left && is_ours(request) ->
        if
        :: !held -> answer(RELEASED)                            /* 'already' */
        :: held && waited && request.verb == RELEASE -> answer(WAITED)
        :: else -> give_up(); answer(RELEASED)
        fi
     :: else -> answer(MISSING)
     fi
  fi;
  request.verb = 0; request.fence = 0; request.due = 0;
  check()
}

inline abandon() {                  /* abandon */
  me.queued = false;
  if :: held && owner == c -> give_up() :: else fi;
  check()
}

proctype network(byte c) {
end:
  do
  :: d_step { me.asked.verb -> serve(me.asked);
              me.reply = reply; me.fence = reply_fence; me.left = reply_left }
  :: d_step { me.stray[0].verb -> serve(me.stray[0]) }
  :: d_step { me.stray[1].verb -> serve(me.stray[1]) }
  :: d_step { me.abandoning -> me.abandoning = false; abandon() }
  :: d_step { me.later && !me.linger -> me.later = false; abandon() }
  od
}

/* The callers: lualock/protocol. */

inline forget() { me.reply = 0; me.fence = 0; me.left = 0 }

inline send(v, lease_fence) {
  me.asked.verb = v; me.asked.fence = lease_fence; forget();
  me.sent = (v == RELEASE || v == HAND_OVER -> 0 : TTL);
  me.asked.due = (v == ACQUIRE || v == ENQUEUE -> DEADLINE : 0); me.expires = me.asked.due
}

inline leave_behind() {             /* nobody waits for the reply any more */
  if
  :: me.asked.verb && !me.stray[0].verb ->
     me.stray[0].verb = me.asked.verb; me.stray[0].fence = me.asked.fence; me.stray[0].due = me.asked.due
  :: me.asked.verb && me.stray[0].verb && !me.stray[1].verb ->
     me.stray[1].verb = me.asked.verb; me.stray[1].fence = me.asked.fence; me.stray[1].due = me.asked.due
  :: else
  fi;
  me.asked.verb = 0; me.asked.fence = 0; me.asked.due = 0; forget()
}

inline may_linger() { leave_behind(); me.ghost = true; me.linger = me.expires }

inline finish() {                   /* nothing of it matters any more but what is under way */
  leave_behind();
#ifndef NO_LATER
  me.later = me.ghost && !me.killed;
#endif
  me.ghost = false; me.sent = 0; me.expires = 0; me.told = 0; me.told_left = 0;
  me.nap = false; me.valid = 0; me.linger = (me.later -> me.linger : 0);
  by_queue = false; again = false; lease = 0;
  me.gone = true; check()
}

#ifdef NO_BEFORE
#define counted(n) n
#else                               /* from before the request was sent */
#define counted(n) (n + me.sent > TTL -> n + me.sent - TTL : 0)
#endif
#define loses (lost < LOST && (me.asked.verb || me.reply))
#define gives_up (gave_up < GIVE_UP)

inline win() {                      /* the reply, which may be to a repeated request, gives us the lock */
  lease = me.fence; me.valid = counted(me.left); me.told = 0; me.told_left = 0; me.sent = 0; me.expires = 0;
  forget(); check()
}
inline release() { send((by_queue -> HAND_OVER : RELEASE), lease) }

proctype caller(byte c) {
  bool by_queue, again; byte lease;
  atomic { started == c -> started++; send(ACQUIRE, 0) }

acquiring:                          /* waiting.acquire */
  if
  :: atomic { me.reply == OURS -> win(); goto holding }
  :: atomic { me.reply == TAKEN -> send(ENQUEUE, 0); goto looking }
  :: atomic { me.reply == LATE -> goto leave }
  :: atomic { loses -> lost++; may_linger(); send(ACQUIRE, 0); goto acquiring }
  :: atomic { gives_up -> gave_up++; may_linger(); goto leave }
  fi;

looking:                            /* waiting.enqueue */
  if
  :: atomic { me.reply == OURS -> by_queue = true; win(); goto holding }
  :: atomic { me.reply == QUEUED ->
       if :: me.told <= me.fence -> me.told = 0; me.told_left = 0 :: else fi;  /* of a turn that passed */
       me.nap = true; me.sent = 0; me.expires = 0; forget(); goto napping }
  :: atomic { me.reply == LATE -> goto leave }
  :: atomic { loses -> lost++; may_linger(); send(ENQUEUE, 0); goto looking }
  :: atomic { gives_up -> gave_up++; may_linger(); goto leave }
  fi;

napping:
  if
#ifndef NO_LOOK
  :: atomic { !me.nap -> send(ENQUEUE, 0); goto looking }
#endif
  :: atomic { me.told -> me.nap = false; goto told }
  :: atomic { killed < KILLED -> killed++; me.killed = true; goto dead }
  :: atomic { gives_up -> gave_up++; goto leave }
  fi;

told:                               /* waiting.claim */
  atomic {
    lease = me.told; by_queue = true; send(CLAIM_IT, lease);
    me.valid = (2 * me.told_left > CLAIM -> me.told_left : 0);
    me.told = 0; me.told_left = 0;
    if :: me.valid -> check(); goto holding :: else fi
  };
claiming:
  if
  :: atomic { me.reply == CLAIMED -> me.valid = me.sent; forget(); check(); goto holding }
  :: atomic { me.reply == MISSING -> send(ENQUEUE, 0); goto looking }
  :: atomic { loses -> lost++; leave_behind(); send(CLAIM_IT, lease); goto claiming }
  :: atomic { gives_up -> gave_up++; leave_behind(); goto leave }
  fi;

leave:                              /* waiting.abandon, holding.give_back */
  atomic { me.abandoning = true; finish(); goto end };

holding:                            /* lease */
  if
  :: atomic { me.reply == CLAIMED ->
       me.valid = (me.sent > me.valid -> me.sent : me.valid); me.sent = 0; forget(); check(); goto holding }
  :: atomic { me.reply == MISSING -> me.valid = 0; forget(); goto holding }
  :: atomic { me.valid && greatest < lease -> goto writing }
  :: atomic { killed < KILLED -> killed++; me.killed = true; goto dead }
  :: atomic { loses -> lost++; leave_behind(); goto holding }
  :: atomic { !me.asked.verb -> me.valid = 0; release() }  /* one connection keeps the order */
  fi;

releasing:                          /* holding.release */
  if
  :: atomic { me.reply == WAITED -> by_queue = true; release(); goto releasing }
  :: atomic { me.reply == RELEASED || me.reply == MISSING -> finish(); goto end }
  :: atomic { loses && !again -> lost++; again = true; leave_behind(); release(); goto releasing }
  :: atomic { loses && again -> lost++; me.unknown = true; finish(); goto end }
  fi;

writing:                            /* it has looked at its lease, and may sleep before it writes */
  atomic {
    if
#ifndef NO_FENCE                    /* fencing/scripts/fenced_set */
    :: lease < greatest -> assert(!me.valid)
#endif
    :: else -> assert(lease >= greatest); greatest = lease                                /* (2) */
    fi
  };
  goto holding;

dead:
  atomic { finish() };
end:
  skip
}

/* Time passes only while something runs out, so whoever has nothing to wait for acts in the end. */

#define down(x) x = (x -> x - 1 : 0)
#define runs_out(c) (who[c].nap || who[c].valid || who[c].asked.due || who[c].stray[0].due || \
                     who[c].stray[1].due || (who[c].later && who[c].linger))
#define has_deadline(request) (request.verb == ACQUIRE || request.verb == ENQUEUE)
#define nothing_left(c) (!me.abandoning && !me.later && !me.queued && owner != c && \
                         !me.stray[0].verb && !me.stray[1].verb)

proctype ticking() {
  byte c;
  do
  :: d_step {
       left || runs_out(0) || runs_out(1) || runs_out(2) ->
       c = 0;
       do
       :: c < CALLERS ->
          down(me.asked.due); down(me.stray[0].due); down(me.stray[1].due);
          down(me.sent); down(me.expires); down(me.linger); down(me.told_left); down(me.valid);
          me.nap = false;
#ifndef NO_DEADLINE
          /* Whenever it comes it will be refused. */
          if :: has_deadline(me.stray[0]) && !me.stray[0].due -> me.stray[0].verb = 0 :: else fi;
          if :: has_deadline(me.stray[1]) && !me.stray[1].due -> me.stray[1].verb = 0 :: else fi;
#endif
          if
          :: me.gone && nothing_left(c) -> me.gone_for = 0
          :: me.gone && !nothing_left(c) && me.gone_for < GHOST -> me.gone_for++
          :: else
          fi;
          c++
       :: else -> break
       od;
       c = 0;
       down(left);
       if :: !left -> held = false; waited = false; owner = NOBODY; fence = 0; unclaimed = false :: else fi;
       clock = last + 1;
       assert(!held || !who[owner].gone || unclaimed || who[owner].gone_for < GHOST);      /* (3) */
       check()
     }
  :: timeout -> break
  od;
  atomic {
    c = 0;
    do
    :: c < CALLERS -> assert(me.gone); c++                                              /* (4) */
    :: else -> break
    od
  }
}

init {
  atomic {
    byte k = 0;
    do                              /* what never happens is no way out for who is stuck */
    :: lost < LOST -> lost++
    :: killed < KILLED -> killed++
    :: gave_up < GIVE_UP -> gave_up++
    :: break
    od;
    do :: k < CALLERS -> run caller(k); run network(k); k++ :: else -> break od;
    run ticking()
  }
}
