//! What each seeded bug does, and where it has happened.

use super::SeededBug;

/// In the order of the variants: what goes wrong, and where it happened.
pub(super) const TABLE: &[(SeededBug, &str, &str)] = &[
    (
        SeededBug::ShortReadDrains,
        "A short read clears readiness although the peer's end was announced: the end is never read.",
        "dotnet/runtime #38747, tokio #5866, haproxy #169",
    ),
    (
        SeededBug::AnyReadDrains,
        "Every read clears readiness, also one that filled its buffer: what is left waits for the next arrival.",
        "mio #45; mio's documentation under \"Draining readiness\"",
    ),
    (
        SeededBug::BudgetForgetsInput,
        "A connection whose read budget is used up is not put back into the ready list.",
        "vibe-d/eventcore #20",
    ),
    (
        SeededBug::BudgetForgetsOutput,
        "A connection whose write budget is used up is not put back into the list of those to write.",
        "sozu #1323",
    ),
    (
        SeededBug::BudgetIgnored,
        "A connection is read on after its budget is used up.",
        "twemproxy #416, gpjt/rsp #2",
    ),
    (
        SeededBug::HoldForgetsReadiness,
        "A connection that is paused, full or throttled forgets that it is readable.",
        "vibe-d/eventcore #20",
    ),
    (
        SeededBug::WriteEdgeMissed,
        "The event that tells of room in the send buffer does not schedule the queue.",
        "sozu 2.0: \"Edge-triggered epoll TLS flush safety\"",
    ),
    (
        SeededBug::AnyWriteBlocks,
        "Every write clears writability, also one that was accepted whole: no event follows it.",
        "mio's documentation under \"Draining readiness\"",
    ),
    (
        SeededBug::EndBeforeData,
        "The announcement of an end counts as the end: the bytes before it are not read.",
        "tinymux #944, netty #4325, skynet #858",
    ),
    (
        SeededBug::EndSeenOnlyByRead,
        "The announcement of an end is not passed on: a paused service never learns that its peer has left.",
        "tidemill 0.1",
    ),
    (
        SeededBug::ErrorEventIgnored,
        "The error of a socket that is not read is ignored: its connection stays for as long as it is held.",
        "bun #37076, tokio #449",
    ),
    (SeededBug::LastEventDropped, "The last event of a batch is dropped.", "gattaca flux #67"),
    (
        SeededBug::InterruptCloses,
        "A read that a signal has interrupted (EINTR) ends its connection.",
        "mio, in its changelog; signal(7)",
    ),
    (
        SeededBug::GenerationUnchecked,
        "Ids are compared by slot only: a late event or an old id reaches the next connection in the slot.",
        "mio #172 and #219, nginx (`instance` bit), RUSTSEC-2024-0019",
    ),
    (SeededBug::GenerationStands, "Every connection gets the same generation.", "mio #184, http.zig #208"),
    (
        SeededBug::ClosedTwice,
        "A connection that is closed twice in a turn is ended twice.",
        "thor #97, bun #32573, msquic #1802",
    ),
    (
        SeededBug::ReadsWhilePaused,
        "A connection in the ready list is read although a callback of the same turn has paused it.",
        "tidemill 0.1",
    ),
    (SeededBug::CallbackUnbounded, "What one delivery may queue has no limit.", "tidemill 0.1"),
    (
        SeededBug::HiddenInputForgotten,
        "Input that the budget of a delivery has hidden is not delivered in the next turn.",
        "tidemill 0.1",
    ),
    (
        SeededBug::ResumeForgetsInput,
        "A resumed connection waits for the next arrival although it has input that was not taken.",
        "curl #17596, mongoose #47",
    ),
    (
        SeededBug::FullNeverDrained,
        "A connection that was full stays full when its queue has been written.",
        "test-stream-pipe-deadlock of Node",
    ),
    (
        SeededBug::ClosedReceiverAwaited,
        "A sender that waits for a full receiver waits on when the receiver has closed.",
        "tidemill 0.1",
    ),
    (
        SeededBug::AcceptStopsAfterOne,
        "One accept clears the readiness of the listener: the rest of the backlog waits for the next peer.",
        "vibe-d/eventcore #20",
    ),
    (SeededBug::AcceptsUnbounded, "All connections of the backlog are accepted in one turn.", "redis #12178"),
    (
        SeededBug::EmfileSpins,
        "Without a descriptor left, accept is tried again at once: the loop spins.",
        "bun #32705, libmill #182, warp #928, ranch #36",
    ),
    (
        SeededBug::PausedListenerSleeps,
        "Nothing wakes the loop at the end of the pause of a listener that had no descriptor.",
        "payjoin #1608",
    ),
    (
        SeededBug::FullListenerSpins,
        "A paused listener without a free slot has a deadline that has passed: the loop does not sleep.",
        "tidemill 0.1",
    ),
    (
        SeededBug::PairTakesOneSlot,
        "A connection that will dial is accepted with room for itself only.",
        "sozu #714",
    ),
    (
        SeededBug::FinBeforeQueue,
        "The FIN is sent while bytes are queued, and the queue is dropped.",
        "haproxy #2505",
    ),
    (
        SeededBug::EndClosesBothWays,
        "The peer's FIN closes both directions: answers to what came before it are dropped.",
        "nginx `proxy_half_close`; haproxy #2505",
    ),
    (
        SeededBug::BothEndsStayOpen,
        "A connection whose two directions have ended keeps its slot.",
        "Node `test-net-socket-no-halfopen-enforcer`",
    ),
    (
        SeededBug::FailedWriteDropsInput,
        "A failed write closes at once: what the peer had sent before is not delivered.",
        "tidemill 0.1",
    ),
    (
        SeededBug::SlowReaderKept,
        "The queue of a peer that does not read grows without a limit.",
        "redis CVE-2025-21605, KeyDB #932, NATS #57",
    ),
    (SeededBug::MemoryUnbounded, "The memory of all connections together has no limit.", "appwrite #13415"),
    (
        SeededBug::EvictedAfterAll,
        "The memory limit is looked at once per phase: a thousand inboxes pass it together.",
        "tidemill 0.1",
    ),
    (
        SeededBug::QueueNotDischarged,
        "A queue that is dropped stays charged: the account only grows.",
        "tidemill 0.1",
    ),
    (
        SeededBug::MessageUnbounded,
        "An incomplete message has no limit.",
        "stratum #2327, redis CVE-2021-32675",
    ),
    (SeededBug::ReapUnbounded, "All connections that have ended are told of in one turn.", "tidemill 0.1"),
    (
        SeededBug::PipePeerClosesAtOnce,
        "When one end of a pipe closes, the other is closed without its queue being written.",
        "haproxy #2505",
    ),
    (
        SeededBug::PipePeerNotResumed,
        "The end of a pipe that waited for the other is not read again when that has drained.",
        "sozu #1323",
    ),
    (
        SeededBug::PipeEndsWaitForEachOther,
        "A piped connection is not read while its own queue is full: two such ends stop for good.",
        "test-stream-pipe-deadlock of Node",
    ),
    (
        SeededBug::FinNotRelayed,
        "The FIN of one end of a pipe is not sent to the other.",
        "nginx `proxy_half_close`",
    ),
    (
        SeededBug::PipedRestKept,
        "Input that a callback leaves when it pipes its connection stays in the inbox.",
        "tidemill 0.1",
    ),
    (
        SeededBug::UnpipeKeepsHold,
        "A connection whose pipe is undone while the other end is full is not read again.",
        "tidemill 0.1",
    ),
    (SeededBug::SpliceBehindFin, "Bytes are spliced into a connection whose FIN was sent.", "tidemill 0.1"),
    (
        SeededBug::UsedPipeKept,
        "A kernel pipe that holds bytes is kept for the next pair, which gets them.",
        "sozu #1323, h2o #3075, tokio-pipe #28",
    ),
    (
        SeededBug::TimerNotRearmed,
        "A deadline that fired early is not armed again for the rest: the connection never times out.",
        "theine-go #64",
    ),
    (
        SeededBug::DeadlineEarly,
        "A deadline is rounded down to the tick in which it lies: it fires early.",
        "rpc-perf #180",
    ),
    (
        SeededBug::WheelFiresEarly,
        "A bucket of a coarse level is due as a whole when it opens.",
        "rpc-perf #180, wahern/timeout #20",
    ),
    (
        SeededBug::FarDeadlineForgotten,
        "A deadline beyond the span of the wheel is never due.",
        "theine-go #64",
    ),
    (
        SeededBug::DribbleRenewsMessage,
        "Each byte restarts the clocks of the message that it belongs to: one byte a second holds a slot.",
        "sozu 2.0.2: \"a 1-byte drip\"",
    ),
    (
        SeededBug::HoldRenewsMessage,
        "Each hold restarts the clocks of an incomplete message: under a rate limit it never times out.",
        "tidemill 0.1",
    ),
    (
        SeededBug::ClosingOutlivesLifetime,
        "The maximum lifetime does not hold for a connection that is closing.",
        "tidemill 0.1",
    ),
    (
        SeededBug::TimersOutliveShutdown,
        "A timer that a `closed` callback sets during a shutdown keeps the loop from ending.",
        "tidemill 0.1",
    ),
    (
        SeededBug::RefillForgotten,
        "A throttled connection is not read again when its rate has refilled.",
        "tidemill 0.1",
    ),
    (
        SeededBug::OldRateWaitedFor,
        "Connections that are throttled when a rate changes wait as long as the old rate asked for.",
        "tidemill 0.1",
    ),
    (
        SeededBug::DiscardSpendsRate,
        "Bytes that a closing connection discards are charged to the rate of its group.",
        "tidemill 0.1",
    ),
    (
        SeededBug::WritableMeansConnected,
        "A dial counts as connected when its socket is writable, without asking for its result.",
        "libuv 1c1dadaf2, mio `TcpStream::connect`",
    ),
    (
        SeededBug::LostAttemptsCounted,
        "Attempts that have lost against another address stay counted.",
        "nodejs #54359 and #48145",
    ),
    (
        SeededBug::SplitNeedleMissed,
        "A search goes on behind the bytes that it has seen: a delimiter that is split over two reads is missed.",
        "memcached `line-lengths.t`",
    ),
    (
        SeededBug::PlaintextForgotten,
        "Plaintext that is left in the filter is not delivered until more ciphertext arrives.",
        "curl #17596, mongoose #47, stud #149, aria2 #360",
    ),
    (
        SeededBug::FilterOutputUnsent,
        "What a filter sends by itself waits for the next bytes of the service.",
        "sozu 2.0: \"Edge-triggered epoll TLS flush safety\"",
    ),
    (
        SeededBug::CloseNotifyNotSent,
        "The FIN is sent without a close_notify before it.",
        "rustls #1406, memberlist #168",
    ),
    (
        SeededBug::TruncationUnnoticed,
        "A FIN without close_notify counts as a complete end.",
        "rustls #1635, ktls #74",
    ),
    (
        SeededBug::EarlyRecordLost,
        "Bytes that came with the request to start TLS are lost.",
        "sozu 2.0: \"Proxy Protocol → TLS readiness transfer\"",
    ),
    (SeededBug::HandshakesUnbounded, "All queued handshakes start at once.", "redis #12178, valkey #4308"),
    (
        SeededBug::WakeUpLost,
        "The loop clears its wake-up flag after it has taken the posts: one that comes in between is not noticed.",
        "the comment at `Mailbox::take`: the order of its two steps",
    ),
    (
        SeededBug::PostsForgotten,
        "Posts that are left after the posts of a turn wait for the next event.",
        "tidemill 0.1",
    ),
    (
        SeededBug::MailboxUnbounded,
        "Posts are taken from the mailbox although earlier ones wait: the limit on posts bounds nothing.",
        "tidemill 0.1",
    ),
];
