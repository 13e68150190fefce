//! Chat templates against Jinja2 as `transformers` sets it up, and against templates that do harm.

use super::*;

#[derive(Debug, Deserialize)]
struct Golden {
    name: String,
    template: String,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    prompt: Option<String>,
    error: Option<String>,
}

/// Written by `scripts/chat_template_golden.py`.
fn golden() -> Vec<Golden> {
    serde_json::from_str(include_str!("../../../tests/golden/chat_template.json")).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Some("<s>".to_owned()), Some("</s>".to_owned())).unwrap()
}

fn user(content: &str) -> Vec<Message> {
    vec![Message { role: "user".to_owned(), content: content.to_owned() }]
}

fn error(source: &str) -> String {
    template(source).render(&user("Hi"), true).unwrap_err().to_string()
}

#[test]
fn prompts_agree_with_transformers() {
    for Golden { name, template: source, cases } in golden() {
        let template = template(&source).with_date(Date::new(2024, 2, 29).unwrap());
        for case in cases {
            let found = template.render(&case.messages, case.add_generation_prompt);
            match (case.prompt, case.error) {
                (Some(prompt), _) => assert_eq!(found.unwrap(), prompt, "{name} {:?}", case.messages),
                // Messages of `raise_exception` are the author's; those of Jinja's own errors need not agree.
                (None, Some(message)) if message.starts_with("Conversation roles") => {
                    let expected = format!("the chat template refuses the messages: {message}");
                    assert_eq!(found.unwrap_err().to_string(), expected);
                }
                (None, _) => assert!(found.is_err(), "{name} {:?}: {found:?}", case.messages),
            }
        }
    }
}

#[test]
fn dates_are_the_callers() {
    let source = "{{ strftime_now('%A %a %d %e %B %b %m %Y %y 100%%') }}";
    assert_eq!(
        error(source),
        "chat template, line 1: expected a date from the caller (the template calls strftime_now), found none"
    );
    let on =
        |year, month, day| template(source).with_date(Date::new(year, month, day).unwrap()).render(&[], false).unwrap();
    // As Python's datetime.date(...).strftime writes them.
    assert_eq!(on(2024, 2, 29), "Thursday Thu 29 29 February Feb 02 2024 24 100%");
    assert_eq!(on(2000, 1, 1), "Saturday Sat 01  1 January Jan 01 2000 00 100%");
    assert_eq!(on(9999, 12, 31), "Friday Fri 31 31 December Dec 12 9999 99 100%");
    assert_eq!(Date::new(2023, 2, 29), None);
    assert_eq!(Date::new(2024, 13, 1), None);
    assert_eq!(Date::new(0, 1, 1), None);
}

#[test]
fn text_of_messages_is_not_a_template() {
    let prompt = template("{{ messages[0].content }}").render(&user("{{ 1 + 1 }}{% if x %}<b>"), false).unwrap();
    assert_eq!(prompt, "{{ 1 + 1 }}{% if x %}<b>");
}

#[test]
fn endless_work_is_stopped() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert_eq!(error(nested), "chat template: expected at most 20000000 steps, found more");
    let long = "{% for a in range(99999) %}{{ '0123456789' * 1000 }}{% endfor %}";
    assert_eq!(error(long), "chat template: expected a prompt of at most 16777216 bytes, found more");
    let recursive = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    assert!(error(recursive).contains("recursion"), "{}", error(recursive));
    assert!(error("{{ 'x' * 99999999999 }}").contains("too large"));
    assert!(error("{{ messages | tojson(indent=99999) }}").contains("expected an indent of at most 16, found 99999"));
}

#[test]
fn broken_templates_are_named() {
    let syntax = |source: &str| ChatTemplate::new(source, None, None).unwrap_err().to_string();
    assert!(syntax("a\n{% for %}").starts_with("chat template, line 2: syntax error"), "{}", syntax("a\n{% for %}"));
    assert!(syntax("{% include").starts_with("chat template, line 1: "));
    let long = "x".repeat(MAX_TEMPLATE_BYTES + 1);
    assert_eq!(syntax(&long), "chat template: expected at most 1048576 bytes, found 1048577");
    assert!(error("\n{{ nothing.at.all }}").starts_with("chat template, line 2: "));
    assert!(error("{% include 'other' %}").contains("other"));
    // The engine itself panics here.
    assert!(error("{% for m in [][::-1] %}{% endfor %}").starts_with("chat template, line 0: internal failure: "));
}

#[test]
fn missing_tokens_are_undefined() {
    let template = ChatTemplate::new("{{ bos_token is defined }} {{ eos_token }}", None, None).unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "False ");
}

/// Days as `date -u -d @SECS` gives them.
#[test]
fn days_of_seconds_since_1970() {
    for (secs, want) in [
        (0, (1970, 1, 1)),
        (86_399, (1970, 1, 1)),
        (951_782_400, (2000, 2, 29)),
        (951_868_800, (2000, 3, 1)),
        (1_709_164_800, (2024, 2, 29)),
        (1_767_225_599, (2025, 12, 31)),
        (4_107_542_400, (2100, 3, 1)),
    ] {
        let (year, month, day) = want;
        assert_eq!(Date::from_unix_secs(secs), Date::new(year, month, day), "{secs}");
    }
    assert_eq!(Date::from_unix_secs(u64::MAX), None);
}
