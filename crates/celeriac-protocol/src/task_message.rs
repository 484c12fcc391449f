//! Building task messages of protocol 2.
//!
//! Celery's counterparts: `celery.app.amqp.AMQP.as_task_v2` and `kombu.messaging.Producer.publish`.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::dumps::dumps;
use crate::json::quote;
use crate::message::{DeliveryInfo, Message};
use crate::saferepr;

/// What a task message says: the arguments of `as_task_v2` by their names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskMessage {
    /// The task's id.
    pub task_id: String,
    /// The task's name.
    pub name: String,
    /// Positional arguments.
    pub args: Vec<Value>,
    /// Arguments by name.
    pub kwargs: Map<String, Value>,
    /// When it is to run: ISO 8601.
    pub eta: Option<String>,
    /// When it is to run no longer: ISO 8601.
    pub expires: Option<String>,
    /// The group that it belongs to.
    pub group_id: Option<String>,
    /// Its place in the group.
    pub group_index: Option<u64>,
    /// How often it was retried.
    pub retries: u64,
    /// The body of the chord that it is a part of.
    pub chord: Option<Value>,
    /// What is called when it has succeeded.
    pub callbacks: Option<Vec<Value>>,
    /// What is called when it has failed.
    pub errbacks: Option<Vec<Value>>,
    /// The rest of its chain, the next call last.
    pub chain: Option<Vec<Value>>,
    /// Where its result is awaited, for backends that ask.
    pub reply_to: Option<String>,
    /// Hard limit on its run time, in seconds.
    pub time_limit: Value,
    /// Soft limit on its run time, in seconds.
    pub soft_time_limit: Value,
    /// The call that all began with; the task itself where there is none.
    pub root_id: Option<String>,
    /// The call that has sent it.
    pub parent_id: Option<String>,
    /// The name that logs and monitors show.
    pub shadow: Option<String>,
    /// Who sends it: `gen<pid>@<host>`.
    pub origin: String,
    /// Whether its result is not stored; `None` leaves it to the task.
    pub ignore_result: Option<bool>,
    /// How often it was replaced by another call.
    pub replaced_task_nesting: u64,
    /// The names of its stamps.
    pub stamped_headers: Option<Vec<String>>,
    /// Its stamps by their names.
    pub stamps: Map<String, Value>,
    /// The arguments as they are shown, where that is not to be computed.
    pub argsrepr: Option<String>,
    /// The arguments by name as they are shown, where that is not to be computed.
    pub kwargsrepr: Option<String>,
    /// Headers of the caller's own; one with a name from above replaces it.
    pub headers: Map<String, Value>,
    /// 2 where the message is to survive a restart of the broker, else 1.
    pub delivery_mode: u8,
    /// Its priority.
    pub priority: u8,
    /// Further properties by AMQP's names, such as `expiration`.
    pub properties: Map<String, Value>,
}

/// The body's last part.
#[derive(Serialize)]
struct Embed<'m> {
    callbacks: &'m Option<Vec<Value>>,
    errbacks: &'m Option<Vec<Value>>,
    chain: &'m Option<Vec<Value>>,
    chord: &'m Option<Value>,
}

impl TaskMessage {
    /// The message, not yet addressed to anything.
    ///
    /// # Errors
    /// When a part can't be written as JSON.
    pub fn build(&self) -> Result<Message, serde_json::Error> {
        let embed = Embed {
            callbacks: &self.callbacks,
            errbacks: &self.errbacks,
            chain: &self.chain,
            chord: &self.chord,
        };
        let body = dumps(&(&self.args, &self.kwargs, embed))?;
        Ok(Message {
            body: body.into(),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            headers: self.build_headers()?.into(),
            properties: self.build_properties()?.into(),
            delivery_info: DeliveryInfo::default(),
        })
    }

    fn build_headers(&self) -> Result<String, serde_json::Error> {
        let text = |text: &Option<String>| text.as_deref().map_or_else(null, quote_ascii);
        let root_id = self.root_id.as_ref().filter(|root| !root.is_empty());
        let argsrepr = self.argsrepr.clone();
        let argsrepr = argsrepr.unwrap_or_else(|| saferepr::arguments(&self.args));
        let kwargsrepr = self.kwargsrepr.clone();
        let kwargsrepr = kwargsrepr.unwrap_or_else(|| saferepr::named_arguments(&self.kwargs));
        let mut headers = Members::new(&self.headers);
        headers.add("lang", &quote_ascii("py"));
        headers.add("task", &quote_ascii(&self.name));
        headers.add("id", &quote_ascii(&self.task_id));
        headers.add("shadow", &text(&self.shadow));
        headers.add("eta", &text(&self.eta));
        headers.add("expires", &text(&self.expires));
        headers.add("group", &text(&self.group_id));
        headers.add("group_index", &dumps(&self.group_index)?);
        headers.add("retries", &self.retries.to_string());
        let limits = [&self.time_limit, &self.soft_time_limit];
        headers.add("timelimit", &dumps(&limits)?);
        let root_id = root_id.unwrap_or(&self.task_id);
        headers.add("root_id", &quote_ascii(root_id));
        headers.add("parent_id", &text(&self.parent_id));
        headers.add("argsrepr", &quote_ascii(&argsrepr));
        headers.add("kwargsrepr", &quote_ascii(&kwargsrepr));
        headers.add("origin", &quote_ascii(&self.origin));
        headers.add("ignore_result", &dumps(&self.ignore_result)?);
        let nesting = self.replaced_task_nesting.to_string();
        headers.add("replaced_task_nesting", &nesting);
        headers.add("stamped_headers", &dumps(&self.stamped_headers)?);
        headers.add("stamps", &dumps(&self.stamps)?);
        headers.end()
    }

    fn build_properties(&self) -> Result<String, serde_json::Error> {
        let mut properties = Members::new(&self.properties);
        properties.add("correlation_id", &quote_ascii(&self.task_id));
        let reply_to = self.reply_to.as_deref().unwrap_or_default();
        properties.add("reply_to", &quote_ascii(reply_to));
        properties.add("delivery_mode", &self.delivery_mode.to_string());
        properties.add("priority", &self.priority.to_string());
        properties.end()
    }
}

/// Members of an object, in the order in which Celery writes them.
struct Members<'m> {
    text: String,
    /// Members of the caller's own, which come last, or in place of those they are named like.
    own: &'m Map<String, Value>,
    replaced: Vec<&'static str>,
}

impl<'m> Members<'m> {
    fn new(own: &'m Map<String, Value>) -> Self {
        let mut text = String::with_capacity(768);
        text.push('{');
        Self {
            text,
            own,
            replaced: Vec::new(),
        }
    }

    fn add(&mut self, name: &'static str, raw: &str) {
        match self.own.get(name).map(dumps) {
            Some(Ok(own)) => {
                self.replaced.push(name);
                self.put(name, &own);
            }
            _ => self.put(name, raw),
        }
    }

    fn put(&mut self, name: &str, raw: &str) {
        if self.text.len() > 1 {
            self.text.push_str(", ");
        }
        self.text.push_str(&quote_ascii(name));
        self.text.push_str(": ");
        self.text.push_str(raw);
    }

    fn end(mut self) -> Result<String, serde_json::Error> {
        for (name, value) in self.own {
            if !self.replaced.iter().any(|replaced| replaced == name) {
                self.put(name, &dumps(value)?);
            }
        }
        self.text.push('}');
        Ok(self.text)
    }
}

fn null() -> String {
    "null".to_owned()
}

fn quote_ascii(text: &str) -> String {
    // Text can always be written.
    dumps(text).unwrap_or_else(|_| quote(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// As `add.delay(2, 3)` puts it into Redis.
    #[test]
    fn a_message_is_celerys_to_the_letter() {
        let message = TaskMessage {
            task_id: "2c31690e-7029-4df1-a9aa-5a390a211096".to_owned(),
            name: "proj.add".to_owned(),
            args: vec![json!(2), json!(3)],
            origin: "gen13906@vm".to_owned(),
            ignore_result: Some(false),
            reply_to: Some("48579f8d-74d6-355d-ac7b-c17b7c0ba20a".to_owned()),
            delivery_mode: 2,
            ..TaskMessage::default()
        };
        let message = message.build().unwrap();
        let body =
            r#"[[2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#;
        assert_eq!(message.body, body);
        assert_eq!(
            message.headers,
            r#"{"lang": "py", "task": "proj.add", "id": "2c31690e-7029-4df1-a9aa-5a390a211096", "shadow": null, "eta": null, "expires": null, "group": null, "group_index": null, "retries": 0, "timelimit": [null, null], "root_id": "2c31690e-7029-4df1-a9aa-5a390a211096", "parent_id": null, "argsrepr": "(2, 3)", "kwargsrepr": "{}", "origin": "gen13906@vm", "ignore_result": false, "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {}}"#
        );
        assert_eq!(
            message.properties,
            r#"{"correlation_id": "2c31690e-7029-4df1-a9aa-5a390a211096", "reply_to": "48579f8d-74d6-355d-ac7b-c17b7c0ba20a", "delivery_mode": 2, "priority": 0}"#
        );
    }

    #[test]
    fn options_stand_where_celery_puts_them() {
        let message = TaskMessage {
            task_id: "1".to_owned(),
            name: "t".to_owned(),
            kwargs: map(json!({"ä": "ü"})),
            shadow: Some("sh".to_owned()),
            time_limit: json!(9),
            soft_time_limit: json!(7),
            headers: map(json!({"my": "hdr", "lang": "rust"})),
            properties: map(json!({"expiration": "120000"})),
            priority: 5,
            stamped_headers: Some(vec!["s".to_owned()]),
            stamps: map(json!({"s": 1})),
            ..TaskMessage::default()
        };
        let message = message.build().unwrap();
        let headers: Value = serde_json::from_str(&message.headers).unwrap();
        assert_eq!(headers["timelimit"], json!([9, 7]));
        assert_eq!(headers["my"], "hdr");
        assert_eq!(headers["lang"], "rust");
        assert_eq!(headers["root_id"], "1");
        assert_eq!(headers["stamps"], json!({"s": 1}));
        assert_eq!(headers["kwargsrepr"], "{'ä': 'ü'}");
        assert!(message.headers.is_ascii());
        assert_eq!(message.headers.matches("\"lang\"").count(), 1);
        let properties: Value = serde_json::from_str(&message.properties).unwrap();
        assert_eq!(properties["expiration"], "120000");
        assert_eq!(properties["priority"], 5);
        assert!(message.body.starts_with(br#"[[], {"\u00e4": "\u00fc"}, {"#));
    }
}
