//! Pipes whose ends have filters.

use super::*;

#[test]
fn a_filtered_pipe_encrypts_and_decrypts_and_is_not_spliced() {
    let mut test = tls_setup(no_idle()).build(discard);
    let (a, id_a) = handshaken(&mut test);
    let id_b = test
        .event_loop
        .table
        .dial(test.service, "10.0.0.9:1".parse().unwrap(), DialOptions::default(), None)
        .unwrap();
    test.turn_until_quiet();
    let b = test.script.dialed()[0];
    test.script.finish_dial(b, Ok(()));
    test.turn_until_quiet();
    assert!(test.sockets().get(id_a).unwrap().pipe(id_b));
    let bulk = vec![b'b'; 500_000];
    test.script.feed(b, &bulk);
    for part in bulk.chunks(16_000) {
        test.script.feed(a, &record(part));
    }
    test.turn_until_quiet();
    assert!(parse_records(&test.script.received(a)).0 == bulk && test.script.received(b) == bulk);
    assert_eq!(test.script.splices(), 0);
    test.script.end(b);
    test.turn_until_quiet();
    assert_eq!((test.script.received(a), test.script.received_end(a)), (END.to_vec(), true));
    test.script.feed(a, END);
    test.turn_until_quiet();
    assert!(test.script.received_end(b));
    assert_eq!((test.event_loop.table.connections(), test.event_loop.table.cx.memory), (0, 0));
}

#[test]
fn a_partial_record_is_charged_when_piped_and_relayed_whole() {
    let mut test = tls_setup(no_idle()).build(discard);
    let (a, id_a) = handshaken(&mut test);
    let (b, id_b) = handshaken(&mut test);
    let ciphertext = record(&[b'r'; 5_000]);
    test.script.feed(a, &ciphertext[..4_000]);
    test.turn_until_quiet();
    assert!(test.sockets().get(id_a).unwrap().pipe(id_b));
    assert!(test.event_loop.table.cx.memory >= 4_000, "{} bytes", test.event_loop.table.cx.memory);
    test.script.feed(a, &ciphertext[4_000..]);
    test.turn_until_quiet();
    assert_eq!(
        (parse_records(&test.script.received(b)).0, test.event_loop.table.cx.memory),
        (vec![b'r'; 5_000], 0)
    );
}

#[test]
fn truncation_of_one_pipe_end_is_not_a_clean_end_for_the_other() {
    let mut test = tls_setup(no_idle()).build(discard);
    let (a, id_a) = handshaken(&mut test);
    let (b, id_b) = handshaken(&mut test);
    assert!(test.sockets().get(id_a).unwrap().pipe(id_b));
    test.script.feed(a, &record(b"half a mess"));
    test.script.end(a);
    test.turn_until_quiet();
    assert_eq!(test.script.received(b), record(b"half a mess"), "no close_notify follows");
    test.advance(2 * SECOND);
    assert_eq!((test.script.released(b), test.script.received_end(b)), (Some(Released::Reset), false));
    assert_eq!(
        (test.close_reason(id_a), test.close_reason(id_b)),
        (Some(CloseReason::Truncated), Some(CloseReason::PipePeerClosed))
    );
}
