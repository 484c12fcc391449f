//! What counts, among all layers.

use serde_json::json;

use super::*;

fn known() -> Vec<Known> {
    let mut known = Known::of_celery();
    known.push(Known::option("CELERY_WORKER_CONCURRENCY", "concurrency"));
    known.push(Known::option("CELERIAC_MAX_MEMORY", "max_memory"));
    known
}

/// Layers by the names of their files; `environment` has a variable a line.
fn read(layers: &[(&str, &str)]) -> Result<Configuration, String> {
    let text = |name: &str| {
        let found = layers.iter().find(|(layer, _)| *layer == name);
        found.map(|(_, text)| (*text).to_owned())
    };
    let file = |name: &str| {
        let text = text(name)?;
        let name = Arc::from(name);
        Some(File { name, text })
    };
    let exported = text("environment").unwrap_or_default();
    let exported = exported.lines().filter_map(|line| line.split_once('='));
    let known = known();
    let texts = Texts {
        file: file("celeriac.toml"),
        environments_file: file("celeriac.test.toml"),
        dotenv: file(".env"),
        exported: exported
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        known: &known,
    };
    resolve(&texts).map_err(|misconfigured| misconfigured.to_string())
}

/// Each layer with a value for the same key.
const LAYERS: [(&str, &str); 6] = [
    ("celeriac.toml", "[celery]\nbroker_url = 'file'"),
    ("celeriac.test.toml", "[celery]\nbroker_url = 'test'"),
    (".env", "CELERIAC_CELERY__BROKER_URL=dotenv"),
    (".env", "CELERY_BROKER_URL=celerys-dotenv"),
    ("environment", "CELERIAC_CELERY__BROKER_URL=exported"),
    ("environment", "CELERY_BROKER_URL=celerys"),
];
const EXPECTED: [(&str, &str); 6] = [
    ("file", "celeriac.toml:2"),
    ("test", "celeriac.test.toml:2"),
    ("dotenv", ".env:1 (CELERIAC_CELERY__BROKER_URL)"),
    ("celerys-dotenv", ".env:1 (CELERY_BROKER_URL)"),
    ("exported", "environment (CELERIAC_CELERY__BROKER_URL)"),
    ("celerys", "environment (CELERY_BROKER_URL)"),
];

#[test]
fn of_each_two_layers_the_higher_one_counts() {
    for lower in 0..LAYERS.len() {
        for higher in lower + 1..LAYERS.len() {
            let ((one, text), (other, over)) = (LAYERS[lower], LAYERS[higher]);
            let both = format!("{text}\n{over}");
            let found = if one == other {
                read(&[(one, &both)])
            } else {
                read(&[(one, text), (other, over)])
            };
            let found = found.unwrap();
            let counts = found.get(&["celery", "broker_url"]).unwrap();
            let (value, source) = EXPECTED[higher];
            assert_eq!(counts.value, json!(value), "{lower} {higher}");
            let at = counts.source.to_string();
            let source = if one == other {
                source.replace(":1", ":2")
            } else {
                source.to_owned()
            };
            assert_eq!(at, source, "{lower} {higher}");
            let entries: Vec<_> = found.entries().collect();
            assert_eq!(entries.len(), 2);
            assert_eq!(entries[0].0.value, json!(EXPECTED[lower].0));
            assert_eq!(entries[0].1, Some(entries[1].0));
            assert_eq!(entries[1].1, None);
        }
    }
}

#[test]
fn the_command_line_is_over_all_layers() {
    for (layer, text) in LAYERS {
        let mut found = read(&[(layer, text)]).unwrap();
        found.give(&["celery", "broker_url"], json!("given"), "--broker");
        let counts = found.get(&["celery", "broker_url"]).unwrap();
        assert_eq!(counts.value, json!("given"));
        assert_eq!(counts.source.to_string(), "command line (--broker)");
    }
}

#[test]
fn what_counts_for_a_url_is_in_the_variable_that_celery_reads() {
    for (layer, text) in LAYERS {
        let found = read(&[(layer, text)]).unwrap();
        let variables: Vec<_> = found.pythons_variables().collect();
        let counts = found.text(&["celery", "broker_url"]).unwrap();
        if layer == ".env" || layer == "environment" {
            assert_eq!(variables, [("CELERY_BROKER_URL", counts)]);
            assert!(found.settings().is_empty());
        } else {
            assert!(variables.is_empty());
            assert_eq!(found.settings()["broker_url"], counts);
        }
    }
}

#[test]
fn tables_are_merged_and_all_else_is_replaced() {
    let found = read(&[
        (
            "celeriac.toml",
            "[celery]\nimports = ['a', 'b']\nbroker_transport_options = { a = 1, b = { c = 2, d = 3 } }\n\
             task_routes = { x = { queue = 'y' } }\nbroker_use_ssl = true",
        ),
        (
            "celeriac.test.toml",
            "[celery]\nimports = ['c']\nbroker_transport_options.b.c = 4\ntask_routes = {}\n\
             broker_use_ssl = { ca_certs = 'file' }",
        ),
        (
            "environment",
            "CELERIAC_CELERY__BROKER_TRANSPORT_OPTIONS__A=5\n\
             CELERIAC_CELERY__TASK_ANNOTATIONS={ \"*\" = { rate_limit = \"1/s\" } }",
        ),
    ]);
    assert_eq!(
        Value::from(found.unwrap().settings()),
        json!({
            "imports": ["c"],
            "broker_transport_options": {"a": 5, "b": {"c": 4, "d": 3}},
            "task_routes": {},
            "broker_use_ssl": {"ca_certs": "file"},
            "task_annotations": {"*": {"rate_limit": "1/s"}},
        })
    );
}

#[test]
fn sections_give_what_is_asked_of_them() {
    let found = read(&[
        (
            "celeriac.toml",
            "app = 'proj'\n[worker]\nconcurrency = 3\nqueues = ['a', 'b']\nautoscale = [10, 3]\n\
             max_deaths = 5\ntask_events = true\n[limits.'proj.add']\nrate = '1/s'\n\
             [commands.ocr]\nargv = ['ocr', '-v']\nenvironment = { A = 'b' }\n\
             [containers.job]\n[pools.IO]\npool = 'gevent'\n[celery]",
        ),
        (
            "environment",
            "CELERIAC_POOLS__IO__CONCURRENCY=512\nCELERIAC_WORKER__LOGLEVEL=INFO",
        ),
    ])
    .unwrap();
    assert_eq!(found.text(&["app"]), Some("proj"));
    assert_eq!(
        Value::from(found.settings()),
        json!({"celeriac_max_deaths": 5, "celeriac_limits": {"proj.add": {"rate": "1/s"}}})
    );
    assert_eq!(
        Value::from(found.pools()),
        json!({"IO": {"pool": "gevent", "concurrency": 512}})
    );
    let commands = json!({"ocr": {"argv": ["ocr", "-v"], "environment": {"A": "b"}}});
    assert_eq!(Value::from(found.commands()), commands);
    assert_eq!(Value::from(found.containers()), json!({"job": {}}));
    let mut options = found.worker_options();
    options.sort_by_key(|(name, ..)| *name);
    let options: Vec<_> = options
        .iter()
        .map(|(name, word, source)| (*name, &**word, source.to_string()))
        .collect();
    let line = |name, word, line| (name, word, format!("celeriac.toml:{line}"));
    assert_eq!(
        options,
        [
            line("autoscale", "10,3", 5),
            line("concurrency", "3", 3),
            (
                "loglevel",
                "INFO",
                "environment (CELERIAC_WORKER__LOGLEVEL)".to_owned()
            ),
            line("queues", "a,b", 4),
            line("task_events", "true", 7),
        ]
    );
}

#[test]
fn an_option_yields_to_its_setting_in_a_higher_layer() {
    let option = "[worker]\nconcurrency = 2";
    let setting = "[celery]\nworker_concurrency = 8";
    let words = |layers: &[(&str, &str)]| {
        let found = read(layers).unwrap();
        found
            .worker_options()
            .into_iter()
            .map(|(_, word, _)| word)
            .collect::<Vec<_>>()
    };
    let both = format!("{option}\n{setting}");
    assert_eq!(words(&[("celeriac.toml", &both)]), ["2"]);
    let layers = [("celeriac.toml", option), ("celeriac.test.toml", setting)];
    assert!(words(&layers).is_empty());
    let layers = [("celeriac.toml", setting), ("celeriac.test.toml", option)];
    assert_eq!(words(&layers), ["2"]);
}

#[test]
fn what_is_exported_is_not_read_from_dotenv() {
    let found = read(&[
        (".env", "SECRET=one\nOTHER=two\nURL=${OTHER}/1"),
        ("environment", "SECRET=three"),
    ])
    .unwrap();
    let variables: Vec<_> = found.variables().collect();
    assert_eq!(variables, [("OTHER", "two")]);
    let found = read(&[
        (".env", "CELERY_BROKER_URL=one"),
        ("environment", "CELERY_BROKER_URL="),
    ]);
    // Exported as empty, which says nothing: but `.env` does not override what is exported.
    assert!(found.unwrap().is_empty());
}

#[test]
fn all_that_is_wrong_is_told_with_its_place_and_without_values() {
    let told = read(&[
        (
            "celeriac.toml",
            "[celery]\ntask_acks_late = 'secret'\nbroker_url = { a = 'secret' }\n\
             CELERY_TASK_SERIALIZER = 'json'\n[wroker]\nconcurrency = 3\n[worker]\nconcurency = 3\n\
             queues = [1]\nmax_deaths = 3\n",
        ),
        (
            "celeriac.test.toml",
            "[pools]\nio = 'secret'\n[pools.cpu]\nsize = 3\n[commands]\na = 1",
        ),
        (".env", "CELERIAC_CELERY__BROKER_URL=${SECRET}"),
        (
            "environment",
            "CELERIAC_CELRY__TASK_ROUTES=secret\nCELERIAC_WORKER__TIME_LIMIT=secret",
        ),
    ])
    .unwrap_err();
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "celeriac.toml:2: celery.task_acks_late is text, and should be true or false",
            "celeriac.toml:3: celery.broker_url is a table, and should be text, or a list of texts",
            "celeriac.toml:4: CELERY_TASK_SERIALIZER is the name that the setting had before Celery \
             4 (write task_serializer)",
            "celeriac.toml:6: there is no section wroker (write worker)",
            "celeriac.toml:8: [worker] has no key concurency (write concurrency)",
            "celeriac.toml:9: worker.queues is a list, and should be a list of texts",
            "celeriac.test.toml:2: pools.io is text, and should be a table",
            "celeriac.test.toml:4: [pools.cpu] has no key size (the keys are autoscale, concurrency, \
             max_memory_per_child, max_tasks_per_child, pool, prefetch_multiplier, processes, queues, \
             soft_time_limit, time_limit)",
            "celeriac.test.toml:6: commands.a is a whole number, and should be a table",
            "environment (CELERIAC_CELRY__TASK_ROUTES): there is no section celry (write celery)",
            "environment (CELERIAC_WORKER__TIME_LIMIT): worker.time_limit is text, and should be a \
             number",
            ".env:1 (CELERIAC_CELERY__BROKER_URL): ${…} is not replaced by the value of another \
             variable (write the value, or put it into single quotes to have it as it is)",
        ]
    );
}

#[test]
fn a_setting_that_nobody_knows_is_told_once_and_handed_over() {
    let text = "[celery]\nworker_concurency = 3\n[celery.tenant]\na = 1\nb = 2";
    let found = read(&[("celeriac.toml", text)]).unwrap();
    let mut told: Vec<_> = found.warnings().iter().map(Problem::to_string).collect();
    told.sort();
    assert_eq!(
        told,
        [
            "celeriac.toml:2: there is no setting worker_concurency (write worker_concurrency)",
            "celeriac.toml:4: there is no setting tenant",
        ]
    );
    assert_eq!(
        Value::from(found.settings()),
        json!({"worker_concurency": 3, "tenant": {"a": 1, "b": 2}})
    );
}

#[test]
fn what_is_given_under_two_names_is_refused() {
    let text = "[worker]\nmax_deaths = 3\n[celery]\nceleriac_max_deaths = 4";
    let told = read(&[("celeriac.toml", text)]).unwrap_err();
    assert!(told.contains("it is given twice"), "{told}");
    // One over the other is none.
    let found = read(&[
        ("celeriac.toml", "[worker]\nmax_deaths = 3"),
        ("celeriac.test.toml", "[celery]\nceleriac_max_deaths = 4"),
    ]);
    assert_eq!(found.unwrap().settings()["celeriac_max_deaths"], 4);
}

#[test]
fn nothing_secret_is_written_by_debug() {
    let layers = [
        ("celeriac.toml", "[celery]\nbroker_url = 'secret'"),
        (".env", "CELERY_BROKER_URL=secret"),
    ];
    let found = read(&layers).unwrap();
    assert!(!format!("{found:?}").contains("secret"));
}

#[test]
fn variables_that_nearly_have_a_name_are_told() {
    let found = read(&[
        (".env", "CELERY_WORKER_CONCURENCY=3"),
        (
            "environment",
            "CELERIAC_MAX_MEMROY=1\nCELERIAC_MAX_MEMORY=1\nCELERIAC_SEED=1\nCELERY_WORKER_IMAGE=a\n\
             WORKER=1",
        ),
    ]);
    let found = found.unwrap();
    let told: Vec<_> = found.warnings().iter().map(Problem::to_string).collect();
    assert_eq!(
        told,
        [
            ".env:1 (CELERY_WORKER_CONCURENCY): nothing reads this variable (write \
             CELERY_WORKER_CONCURRENCY)",
            "environment (CELERIAC_MAX_MEMROY): nothing reads this variable (write \
             CELERIAC_MAX_MEMORY)",
        ]
    );
}

#[test]
fn the_example_of_the_documentation_is_a_configuration() {
    let text = include_str!("../../../../docs/configuration.md");
    let (_, example) = text.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let found = read(&[("celeriac.toml", example)]).unwrap();
    assert!(found.warnings().is_empty(), "{:?}", found.warnings());
    assert_eq!(found.pools()["io"]["concurrency"], 512);
    let (_, variables) = text.split_once("```sh\nCELERIAC_").unwrap();
    let (variables, _) = variables.split_once("```").unwrap();
    let variables = format!("CELERIAC_{variables}").replace('\'', "");
    let found = read(&[("environment", &variables)]).unwrap();
    assert_eq!(found.settings()["task_acks_late"], true);
    assert_eq!(
        found.settings()["task_routes"]["proj.tasks.mail"]["queue"],
        "mail"
    );
}
