/*
 * A model of lualock for Spin: one lock on one server, callers that want it once each, a network
 * that delays and loses, and a resource that remembers the greatest fence. `make model` checks it.
 *
 * Every step may be arbitrarily late. Callers are paused anywhere, also past their lease, and requests
 * arrive after their sender has gone on or has sent them again. Time may pass before any step, but only
 * while something runs out, so a caller with nothing to wait for acts in the end. A lost request is one
 * that arrives when it has no effect any more. Callers are alike, so they start in order. A second
 * acquisition has a fresh token, so here it is another caller.
 *
 * What must hold:
 *  (1) at most one caller believes that it has the lock, and not for longer than the server does;
 *  (2) a later turn has a greater fence; nothing is written after a greater fence; the write of a caller
 *      that believes that it has the lock is accepted;
 *  (3) a token whose caller gave up, and was cleaned up after, has neither the lock nor a ticket. Before
 *      that, or if the caller was killed, it has the lock for at most a window (granted from the queue,
 *      unclaimed) or ORPHAN (a request takes it when it is just not late, and a lost claim arrives as that
 *      lease ends);
 *  (4) a caller that does not give up gets the lock or learns why not: no state without a next step in
 *      which a caller still waits, and no cycle (with -DNP), so that every behaviour gets there.
 *
 * Left out: extend, adopt, jobs, fair=False, priorities, max_waiters, running out of memory, and the
 * server's own faults (restart, failover, a clock that steps), after which there may be two holders.
 * Simpler than the code:
 *  - Time is in ticks; clocks run equally fast and are compared exactly. Within a tick TIME stands still,
 *    from one to the next it passes every fence.
 *  - A waiter may check the queue at every tick, and must if nothing else happens. So no waiter needs the
 *    message that it is first (notify_head), or that it took the lock itself (`+`).
 *  - A ticket keeps its place also if the reply that named the place was lost.
 *  - The record has no previous_token: a repeated release that it would answer finds `missing` here.
 *  - A killed waiter leaves nothing but its ticket (its connection breaks at once).
 *
 * Without one of these guards (-D) a property must fail:
 *   NO_DEADLINE  acquire and wait carry out late requests (3)       NO_OWNER  release checks no owner (1)
 *   NO_LATER  no second abandon when a lost request is late (3)     NO_FENCE  the resource compares nothing (2)
 *   NO_RAISE  a fence is the server's time alone (2)                NO_CHECK  waiters rely on messages (4)
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
#define ORPHAN (DEADLINE + 2 * TTL)
#define N 3
#define NOBODY N

mtype = { ACQUIRE, WAIT, CLAIM_IT, RELEASE, HAND_OVER };                 /* requests */
mtype = { OURS, TAKEN, QUEUED, LATE, CLAIMED, MISSING, RELEASED, WAITED };  /* replies */

typedef Request { mtype verb; byte fence; byte due }    /* due: until its deadline */
typedef Caller {
  Request in_flight;                /* its reply is waited for */
  Request orphans[2];               /* in flight; its caller does not read the reply */
  mtype reply; byte fence; byte left;
  byte sent;                        /* how long a lease lasts that is counted from the last sending */
  byte expires;                     /* how long until the last request is late */
  bool has_orphan; byte orphan_left;   /* a lost request may arrive still; until when */
  byte message; byte message_left;  /* the fence that was granted, and how long it is certain */
  bool check_later;                 /* waits until it checks the queue again */
  byte valid;                       /* for how long it believes that the lock is its */
  bool abandoning; bool later;      /* abandon runs in the background */
  bool gone; byte gone_for;         /* it has ended; for how long */
  bool killed; bool unknown;        /* killed; its release had an unknown outcome */
  bool queued; byte place           /* its ticket */
}
Caller who[N];
#define me who[c]

bool held; byte owner = NOBODY; byte fence; bool waited; byte left;   /* the record; no key: left 0 */
bool unclaimed;                     /* granted from the queue, and neither claimed nor checked since */
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

inline grant_next(own) {            /* include/grant_next: to the first that can be reached */
  given = NOBODY;
  find_first();
  do
  :: given == NOBODY && first != NOBODY ->
     who[first].queued = false;
     if
     :: who[first].killed && first != own -> find_first()     /* PUBLISH has no receiver */
     :: else ->
        given = first;
        next_fence();
        held = true; owner = given; fence = f; waited = true;
        if
        :: given == own -> left = TTL; unclaimed = false
        :: else ->
           left = CLAIM; unclaimed = true;
           if :: !who[given].gone -> who[given].message = f; who[given].message_left = CLAIM :: else fi
        fi
     fi
  :: else -> break
  od
}

inline release_and_grant_next() {   /* the include: hand over, or leave a tombstone */
  grant_next(NOBODY);
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
  :: request.verb == WAIT ->     /* enqueue */
     if
     :: is_late(request) -> answer(LATE)
     :: !is_late(request) && held && owner == c -> left = TTL; unclaimed = false; answer(OURS)
     :: else ->
        if :: !me.queued -> me.queued = true; if :: !me.place -> places++; me.place = places :: else fi :: else fi;
        if
        :: held -> waited = true; answer(QUEUED)
        :: else ->
           grant_next(c);              /* to itself if no other caller waits */
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
        :: else -> release_and_grant_next(); answer(RELEASED)
        fi
     :: else -> answer(MISSING)
     fi
  fi;
  request.verb = 0; request.fence = 0; request.due = 0;
  check()
}

inline abandon() {                  /* abandon */
  me.queued = false;
  if :: held && owner == c -> release_and_grant_next() :: else fi;
  check()
}

proctype network(byte c) {
end:
  do
  :: d_step { me.in_flight.verb -> serve(me.in_flight);
              me.reply = reply; me.fence = reply_fence; me.left = reply_left }
  :: d_step { me.orphans[0].verb -> serve(me.orphans[0]) }
  :: d_step { me.orphans[1].verb -> serve(me.orphans[1]) }
  :: d_step { me.abandoning -> me.abandoning = false; abandon() }
  :: d_step { me.later && !me.orphan_left -> me.later = false; abandon() }
  od
}

/* The callers: lualock/_protocol. */

inline forget() { me.reply = 0; me.fence = 0; me.left = 0 }

inline send(v, lease_fence) {
  me.in_flight.verb = v; me.in_flight.fence = lease_fence; forget();
  me.sent = (v == RELEASE || v == HAND_OVER -> 0 : TTL);
  me.in_flight.due = (v == ACQUIRE || v == WAIT -> DEADLINE : 0); me.expires = me.in_flight.due
}

#define keep_orphan(n) \
  me.orphans[n].verb = me.in_flight.verb; me.orphans[n].fence = me.in_flight.fence; \
  me.orphans[n].due = me.in_flight.due

inline leave_behind() {             /* the caller does not wait for the reply any more */
  if
  :: me.in_flight.verb && !me.orphans[0].verb ->
     keep_orphan(0)
  :: me.in_flight.verb && me.orphans[0].verb && !me.orphans[1].verb ->
     keep_orphan(1)
  :: else
  fi;
  me.in_flight.verb = 0; me.in_flight.fence = 0; me.in_flight.due = 0; forget()
}

inline orphan_it() { leave_behind(); me.has_orphan = true; me.orphan_left = me.expires }

inline finish() {                   /* only requests in flight still matter */
  leave_behind();
#ifndef NO_LATER
  me.later = me.has_orphan && !me.killed;
#endif
  me.has_orphan = false; me.sent = 0; me.expires = 0; me.message = 0; me.message_left = 0;
  me.check_later = false; me.valid = 0; me.orphan_left = (me.later -> me.orphan_left : 0);
  by_queue = false; again = false; lease = 0;
  me.gone = true; check()
}

#ifdef NO_BEFORE
#define counted(n) n
#else                               /* from before the request was sent */
#define counted(n) (n + me.sent > TTL -> n + me.sent - TTL : 0)
#endif
#define loses (lost < LOST && (me.in_flight.verb || me.reply))
#define gives_up (gave_up < GIVE_UP)

inline win() {                      /* the reply, maybe to a repeated request, gives it the lock */
  lease = me.fence; me.valid = counted(me.left); me.message = 0; me.message_left = 0; me.sent = 0; me.expires = 0;
  forget(); check()
}
inline release() { send((by_queue -> HAND_OVER : RELEASE), lease) }

proctype caller(byte c) {
  bool by_queue, again; byte lease;
  atomic { started == c -> started++; send(ACQUIRE, 0) }

acquiring:                          /* acquire.py */
  if
  :: atomic { me.reply == OURS -> win(); goto holding }
  :: atomic { me.reply == TAKEN -> send(WAIT, 0); goto checking }
  :: atomic { me.reply == LATE -> goto leave }
  :: atomic { loses -> lost++; orphan_it(); send(ACQUIRE, 0); goto acquiring }
  :: atomic { gives_up -> gave_up++; orphan_it(); goto leave }
  fi;

checking:                           /* wait.py */
  if
  :: atomic { me.reply == OURS -> by_queue = true; win(); goto holding }
  :: atomic { me.reply == QUEUED ->
       if :: me.message <= me.fence -> me.message = 0; me.message_left = 0 :: else fi;  /* of a turn that passed */
       me.check_later = true; me.sent = 0; me.expires = 0; forget(); goto waiting }
  :: atomic { me.reply == LATE -> goto leave }
  :: atomic { loses -> lost++; orphan_it(); send(WAIT, 0); goto checking }
  :: atomic { gives_up -> gave_up++; orphan_it(); goto leave }
  fi;

waiting:
  if
#ifndef NO_CHECK
  :: atomic { !me.check_later -> send(WAIT, 0); goto checking }
#endif
  :: atomic { me.message -> me.check_later = false; goto granted }
  :: atomic { killed < KILLED -> killed++; me.killed = true; goto dead }
  :: atomic { gives_up -> gave_up++; goto leave }
  fi;

granted:                            /* claim in wait.py */
  atomic {
    lease = me.message; by_queue = true; send(CLAIM_IT, lease);
    me.valid = (2 * me.message_left > CLAIM -> me.message_left : 0);
    me.message = 0; me.message_left = 0;
    if :: me.valid -> check(); goto holding :: else fi
  };
claiming:
  if
  :: atomic { me.reply == CLAIMED -> me.valid = me.sent; forget(); check(); goto holding }
  :: atomic { me.reply == MISSING -> send(WAIT, 0); goto checking }
  :: atomic { loses -> lost++; leave_behind(); send(CLAIM_IT, lease); goto claiming }
  :: atomic { gives_up -> gave_up++; leave_behind(); goto leave }
  fi;

leave:                              /* abandon in wait.py, give_back in abandon.py */
  atomic { me.abandoning = true; finish(); goto end };

holding:                            /* lease */
  if
  :: atomic { me.reply == CLAIMED ->
       me.valid = (me.sent > me.valid -> me.sent : me.valid); me.sent = 0; forget(); check(); goto holding }
  :: atomic { me.reply == MISSING -> me.valid = 0; forget(); goto holding }
  :: atomic { me.valid && greatest < lease -> goto writing }
  :: atomic { killed < KILLED -> killed++; me.killed = true; goto dead }
  :: atomic { loses -> lost++; leave_behind(); goto holding }
  :: atomic { !me.in_flight.verb -> me.valid = 0; release() }  /* one connection keeps the order */
  fi;

releasing:                          /* release.py */
  if
  :: atomic { me.reply == WAITED -> by_queue = true; release(); goto releasing }
  :: atomic { me.reply == RELEASED || me.reply == MISSING -> finish(); goto end }
  :: atomic { loses && !again -> lost++; again = true; leave_behind(); release(); goto releasing }
  :: atomic { loses && again -> lost++; me.unknown = true; finish(); goto end }
  fi;

writing:                            /* it has checked its lease, and may sleep before it writes */
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

/* Time passes only while something runs out, so a caller with nothing to wait for acts in the end. */

#define down(x) x = (x -> x - 1 : 0)
#define runs_out(c) (who[c].check_later || who[c].valid || who[c].in_flight.due || who[c].orphans[0].due || \
                     who[c].orphans[1].due || (who[c].later && who[c].orphan_left))
#define has_deadline(request) (request.verb == ACQUIRE || request.verb == WAIT)
#define nothing_left(c) (!me.abandoning && !me.later && !me.queued && owner != c && \
                         !me.orphans[0].verb && !me.orphans[1].verb)

proctype ticking() {
  byte c;
  do
  :: d_step {
       left || runs_out(0) || runs_out(1) || runs_out(2) ->
       c = 0;
       do
       :: c < CALLERS ->
          down(me.in_flight.due); down(me.orphans[0].due); down(me.orphans[1].due);
          down(me.sent); down(me.expires); down(me.orphan_left); down(me.message_left); down(me.valid);
          me.check_later = false;
#ifndef NO_DEADLINE
          /* It is refused whenever it arrives. */
          if :: has_deadline(me.orphans[0]) && !me.orphans[0].due -> me.orphans[0].verb = 0 :: else fi;
          if :: has_deadline(me.orphans[1]) && !me.orphans[1].due -> me.orphans[1].verb = 0 :: else fi;
#endif
          if
          :: me.gone && nothing_left(c) -> me.gone_for = 0
          :: me.gone && !nothing_left(c) && me.gone_for < ORPHAN -> me.gone_for++
          :: else
          fi;
          c++
       :: else -> break
       od;
       c = 0;
       down(left);
       if :: !left -> held = false; waited = false; owner = NOBODY; fence = 0; unclaimed = false :: else fi;
       clock = last + 1;
       assert(!held || !who[owner].gone || unclaimed || who[owner].gone_for < ORPHAN);      /* (3) */
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
    do                              /* a fault that never happens is no way out for a stuck caller */
    :: lost < LOST -> lost++
    :: killed < KILLED -> killed++
    :: gave_up < GIVE_UP -> gave_up++
    :: break
    od;
    do :: k < CALLERS -> run caller(k); run network(k); k++ :: else -> break od;
    run ticking()
  }
}
