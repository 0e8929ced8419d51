//! Streams of every dialect and oddity, written by us after what the servers send; each is cut at every byte.
use super::*;
use crate::llm::ChatAnswer;

/// The completion of a stream, which is the same wherever the bytes are cut.
fn decoded(stream: &str) -> Result<Value, Error> {
    let whole = fed(&[stream.as_bytes()]);
    for at in 0..=stream.len() {
        let (first, second) = stream.as_bytes().split_at(at);
        assert_eq!(fed(&[first, second]), whole, "cut at {at} of {stream:?}");
    }
    let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
    assert_eq!(fed(&bytes), whole, "one byte at a time");
    whole
}

fn fed(pieces: &[&[u8]]) -> Result<Value, Error> {
    let mut decoder = StreamDecoder::default();
    for piece in pieces {
        decoder.feed(piece)?;
    }
    decoder.end()
}

fn message(stream: &str) -> Value {
    decoded(stream).unwrap()["choices"][0]["message"].clone()
}

/// The events of these chunks, ended by `[DONE]`.
fn sse(chunks: &[Value]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect::<String>() + "data: [DONE]\n\n"
}

fn delta(delta: Value) -> Value {
    json!({ "choices": [{ "index": 0, "delta": delta }] })
}

fn piece(call: Value) -> Value {
    delta(json!({ "tool_calls": [call] }))
}

fn calls(chunks: &[Value]) -> Vec<(String, String, String)> {
    let message = message(&sse(chunks));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |call: &Value| {
        (text(&call["id"]), text(&call["function"]["name"]), text(&call["function"]["arguments"]))
    };
    message["tool_calls"].as_array().unwrap().iter().map(one).collect()
}

fn owned(calls: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    calls.iter().map(|(id, name, args)| ((*id).into(), (*name).into(), (*args).into())).collect()
}

#[test]
fn openai_stream_with_usage_in_its_last_chunk() {
    let stream = "data: {\"id\":\"c\",\"model\":\"m-1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n\
        data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Gr\u{fc}\"},\"finish_reason\":null}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\u{df}e \u{1f600}\"},\"finish_reason\":null}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n\
        data: [DONE]\n\n";
    let answer = ChatAnswer::read(decoded(stream).unwrap()).unwrap();
    assert_eq!(answer.message, json!({ "role": "assistant", "content": "Gr\u{fc}\u{df}e \u{1f600}" }));
    assert_eq!((answer.finish.as_deref(), answer.model.as_deref()), (Some("stop"), Some("m-1")));
    assert_eq!((answer.input_tokens, answer.output_tokens), (Some(7), Some(2)));
    let mut decoder = StreamDecoder::default();
    decoder.feed(stream.as_bytes()).unwrap();
    assert_eq!(decoder.parts(), 2, "the first and the last parts have no text");
}

#[test]
fn lines_end_in_every_way_and_comments_and_pings_are_skipped() {
    let chunk = delta(json!({ "content": "x" }));
    for end in ["\n", "\r\n", "\r"] {
        let stream = format!(
            "\u{feff}: OPENROUTER PROCESSING{end}{end}event: ping{end}data: {{\"type\": \"ping\"}}{end}{end}\
             id: 7{end}retry: 10{end}event: message{end}data:{chunk}{end}{end}data: [DONE]{end}{end}"
        );
        assert_eq!(message(&stream)["content"], "x", "{end:?}");
    }
    let lines = "data: {\"choices\":\ndata: [{\"delta\":{\"content\":\"two lines\"},\ndata: \"finish_reason\":\"stop\"}]}\n\n";
    assert_eq!(message(lines)["content"], "two lines");
}

#[test]
fn end_without_done_counts_only_after_a_finish_reason() {
    let finished = json!({ "choices": [{ "delta": { "content": "all" }, "finish_reason": "eos" }] });
    for end in ["", "\n", "\n\n", "\r\n"] {
        assert_eq!(message(&format!("data: {finished}{end}"))["content"], "all", "{end:?}");
    }
    let cut = Error::Broken { reason: "the stream ended before the answer".into() };
    for stream in ["", ": wait\n\n", &format!("data: {}\n\n", delta(json!({ "content": "hal" })))] {
        assert_eq!(decoded(stream), Err(cut.clone()), "{stream}");
    }
    let half = piece(json!({ "index": 0, "id": "a", "function": { "name": "pay", "arguments": "{\"amou" } }));
    assert_eq!(decoded(&format!("data: {half}\n\n")), Err(cut.clone()));
    // A line that was cut itself.
    assert_eq!(decoded("data: {\"choices\": [{\"del"), Err(cut));
}

#[test]
fn nothing_after_done_is_read() {
    let stream = sse(&[delta(json!({ "content": "x" }))]) + "data: rubbish\n\ndata: {\"error\": {}}\n\n";
    assert_eq!(message(&stream)["content"], "x");
}

#[test]
fn call_in_pieces_with_its_id_in_the_first_only() {
    let found = calls(&[
        piece(
            json!({ "index": 0, "id": "call_a", "type": "function", "function": { "name": "pay", "arguments": "" } }),
        ),
        piece(json!({ "index": 0, "function": { "arguments": "{\"a\":" } })),
        piece(json!({ "index": 0, "id": null, "function": { "name": null, "arguments": "1}" } })),
        piece(json!({ "index": 1, "id": "call_b", "function": { "name": "look", "arguments": "{}" } })),
    ]);
    assert_eq!(found, owned(&[("call_a", "pay", "{\"a\":1}"), ("call_b", "look", "{}")]));
}

#[test]
fn two_calls_with_the_same_index_have_two_ids() {
    let found = calls(&[
        piece(json!({ "index": 0, "id": "a", "function": { "name": "look", "arguments": "{\"n\":1}" } })),
        piece(json!({ "index": 0, "id": "b", "function": { "name": "look", "arguments": "{\"n\":" } })),
        piece(json!({ "index": 0, "id": "b", "function": { "arguments": "2}" } })),
    ]);
    assert_eq!(found, owned(&[("a", "look", "{\"n\":1}"), ("b", "look", "{\"n\":2}")]));
}

#[test]
fn calls_without_index_are_told_apart_by_id_and_without_either_by_their_ends() {
    let with_ids = calls(&[
        piece(json!({ "id": "a", "function": { "name": "look", "arguments": "{\"n\":1}" } })),
        piece(json!({ "id": "b", "function": { "name": "pay", "arguments": "{" } })),
        piece(json!({ "function": { "arguments": "}" } })),
    ]);
    assert_eq!(with_ids, owned(&[("a", "look", "{\"n\":1}"), ("b", "pay", "{}")]));
    let together = json!({ "tool_calls": [
        { "function": { "name": "look", "arguments": "{\"n\":1}" } },
        { "function": { "name": "look", "arguments": { "n": 2 } } },
    ] });
    let without = calls(&[delta(together)]);
    assert_eq!(without, owned(&[("", "look", "{\"n\":1}"), ("", "look", "{\"n\":2}")]));
}

#[test]
fn index_may_begin_at_one_and_pieces_may_alternate() {
    let found = calls(&[
        piece(json!({ "index": 1, "id": "a", "function": { "name": "look", "arguments": "{" } })),
        piece(json!({ "index": 2, "id": "b", "function": { "name": "pay", "arguments": "{" } })),
        piece(json!({ "index": 1, "function": { "arguments": "}" } })),
        piece(json!({ "index": 2, "function": { "arguments": "}" } })),
    ]);
    assert_eq!(found, owned(&[("a", "look", "{}"), ("b", "pay", "{}")]));
}

#[test]
fn reasoning_and_signatures_are_kept() {
    let signature = json!({ "google": { "thought_signature": "sig" } });
    let call = json!({ "index": 0, "id": "a", "extra_content": signature, "function": { "name": "look", "arguments": "{}" } });
    let found = message(&sse(&[
        delta(json!({ "role": "assistant", "reasoning_content": "first, " })),
        delta(json!({ "role": "assistant", "reasoning_content": "second", "content": null })),
        delta(json!({ "reasoning_details": [{ "type": "reasoning.text", "text": "a" }] })),
        delta(json!({ "reasoning_details": [{ "type": "reasoning.encrypted", "data": "b" }] })),
        piece(call),
    ]));
    assert_eq!((&found["role"], &found["reasoning_content"]), (&json!("assistant"), &json!("first, second")));
    assert_eq!(found["reasoning_details"].as_array().unwrap().len(), 2);
    assert_eq!(found["tool_calls"][0]["extra_content"], signature);
}

#[test]
fn content_in_parts_is_joined() {
    let text = |text: &str| delta(json!({ "content": [{ "type": "text", "text": text }] }));
    let found = message(&sse(&[text("a"), text("b")]));
    assert_eq!(found["content"].as_array().unwrap().len(), 2);
}

#[test]
fn usage_counts_wherever_it_stands_and_however_odd_it_is() {
    let tokens = |chunks: &[Value]| {
        let answer = ChatAnswer::read(decoded(&sse(chunks)).unwrap()).unwrap();
        (answer.input_tokens, answer.output_tokens)
    };
    let text = delta(json!({ "content": "x" }));
    let usage = json!({ "prompt_tokens": 5, "completion_tokens": 3 });
    let with = |more: Value| {
        let mut chunk = text.clone();
        chunk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        chunk
    };
    let (some, none) = ((Some(5), Some(3)), (None, None));
    assert_eq!(tokens(&[with(json!({ "usage": usage })), with(json!({ "usage": {} }))]), some);
    assert_eq!(
        tokens(&[
            with(json!({ "usage": { "prompt_tokens": 1, "completion_tokens": 1 } })),
            with(json!({ "usage": usage }))
        ]),
        some
    );
    assert_eq!(tokens(&[text.clone(), json!({ "x_groq": { "usage": usage } })]), some);
    assert_eq!(tokens(&[json!({ "choices": [{ "delta": {}, "usage": usage }] })]), some);
    assert_eq!(
        tokens(&[with(json!({ "timings": { "prompt_n": 2, "cache_n": 3, "predicted_n": 3 } }))]),
        some
    );
    let float = json!({ "prompt_tokens": 4.2, "completion_tokens": "3", "prompt_tokens_details": null });
    assert_eq!(tokens(&[with(json!({ "usage": float }))]), some);
    for odd in [json!(null), json!({}), json!([]), json!("x"), json!({ "prompt_tokens": null })] {
        assert_eq!(tokens(&[with(json!({ "usage": odd }))]), none, "{odd}");
    }
}

#[test]
fn error_in_the_stream_is_an_error_of_its_class() {
    let part = delta(json!({ "content": "x" }));
    for (error, expected) in [
        (json!({ "error": { "message": "secret", "code": 429 } }), Error::RateLimited { retry_after: None }),
        (
            json!({ "error": { "message": "secret", "code": 502 }, "choices": [{ "delta": {}, "finish_reason": "error" }] }),
            Error::Failed { status: 502, retry_after: None },
        ),
        (json!({ "error": "secret" }), Error::InvalidAnswer("it is an error with status 200")),
        (json!([{ "error": { "code": 401 } }]), Error::Refused { status: 401 }),
        (
            json!({ "object": "error", "message": "secret", "code": 400, "type": "BadRequestError" }),
            Error::Rejected { status: 400 },
        ),
    ] {
        assert_eq!(decoded(&sse(&[part.clone(), error.clone()])), Err(expected), "{error}");
    }
}

#[test]
fn wrong_type_of_every_member_neither_panics_nor_loses_the_rest() {
    let odd = [json!(null), json!(7), json!("x"), json!([1]), json!({ "a": [] }), json!(true)];
    for value in odd {
        for chunk in [
            json!({ "choices": value }),
            json!({ "choices": [value] }),
            delta(value.clone()),
            delta(json!({ "tool_calls": value })),
            piece(value.clone()),
            piece(json!({ "index": value, "id": value, "function": value })),
            piece(json!({ "function": { "name": value, "arguments": value } })),
            json!({ "usage": value, "model": value, "x_groq": value, "timings": value }),
            json!({ "choices": [{ "index": value, "finish_reason": value, "usage": value }] }),
        ] {
            let stream = sse(&[chunk.clone(), delta(json!({ "content": "rest" }))]);
            let found = decoded(&stream).unwrap_or_else(|e| panic!("{chunk}: {e}"));
            let content = found["choices"][0]["message"]["content"].to_string();
            assert!(content.contains("rest"), "{chunk}: {found}");
        }
    }
    for rubbish in ["data: 7\n\n", "data: \"x\"\n\n", "data: [1]\n\n", "data: {]\n\n", "data: \u{0}\n\n"] {
        assert!(matches!(decoded(rubbish), Err(Error::InvalidAnswer(_))), "{rubbish}");
    }
    assert!(fed(&[b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\"}}]}\n\n"]).is_err(), "no UTF-8");
}

#[test]
fn endless_event_and_endless_stream_end_at_their_limits() {
    let mut decoder = StreamDecoder::default();
    let fed = (0..=16).map(|_| decoder.feed(&[b'x'; 65_536])).find(Result::is_err);
    assert_eq!(fed, Some(Err(Error::InvalidAnswer("an event of it is over 1 MiB"))));
    let mut decoder = StreamDecoder::default();
    let event = format!(
        "data: {}\n\n",
        piece(json!({ "function": { "name": "f", "arguments": "x".repeat(60_000) } }))
    );
    let fed = (0..100).map(|_| decoder.feed(event.as_bytes())).find(Result::is_err);
    assert_eq!(fed, Some(Err(Error::InvalidAnswer("it is over 4 MiB"))));
}

proptest::proptest! {
    #[test]
    fn any_split_of_any_bytes_gives_the_same_answer(
        events in proptest::collection::vec("(data|event|id|:)?:? ?[ -~\u{e4}\r\n]{0,40}(\r\n|\n|\r|\n\n)", 0..20),
        cuts in proptest::collection::vec(0_usize..800, 0..5),
    ) {
        let text = events.concat() + &sse(&[delta(json!({ "content": "x" }))]);
        let bytes = text.as_bytes();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(bytes.len())).collect();
        cuts.sort_unstable();
        let (mut pieces, mut from) = (Vec::new(), 0);
        for at in cuts.into_iter().chain([bytes.len()]) {
            pieces.push(&bytes[from..at]);
            from = at;
        }
        proptest::prop_assert_eq!(fed(&pieces), fed(&[bytes]));
    }
}

#[test]
fn text_that_repeats_itself_ends_the_stream() {
    for member in ["content", "reasoning_content", "reasoning"] {
        let chunks: Vec<Value> = (0..400).map(|_| delta(json!({ member: "once more, " }))).collect();
        let mut decoder = StreamDecoder::default();
        let mut fed = 0;
        for chunk in &chunks {
            decoder.feed(format!("data: {chunk}\n\n").as_bytes()).unwrap();
            fed += 1;
            if decoder.is_done() {
                break;
            }
        }
        assert!((40..100).contains(&fed), "{member}: {fed} chunks of 11 bytes");
        let completion = decoder.end().unwrap();
        assert_eq!(completion["choices"][0]["finish_reason"], "length", "{member}");
    }
    let args =
        |_| piece(json!({ "index": 0, "id": "c", "function": { "name": "f", "arguments": "[0,0]," } }));
    let chunks: Vec<Value> = (0..400).map(args).collect();
    let completion = fed(&[sse(&chunks).as_bytes()]).unwrap();
    let call = &completion["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"]["arguments"].as_str().unwrap().len(), 2_400, "arguments are data");
}
