//! How every store keeps limits for all workers.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::limit::{
    Answer, Asked, Claim, FIRST_LOOK, Holding, LEASE, LimitSession, LimitStore, Order, Permit, Rate,
};
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

/// Longer than anything takes but a lease.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the whole suite.
pub async fn run(store: &Arc<dyn LimitStore>) {
    requests_take_turns(store).await;
    a_burst_begins_at_once(store).await;
    slots_are_given_back(store).await;
    slots_of_the_dead_come_free(store).await;
    both_limits_must_allow_it(store).await;
    only_one_of_a_kind_is_under_way(store).await;
    a_window_is_kept_to_its_end(store).await;
    many_workers_share_the_slots(store).await;
}

fn name(kind: &str) -> String {
    // Names are anything, and two that differ in case are two.
    format!("{kind}:Größe'\"%`{}", uuid::Uuid::new_v4().simple())
}

fn rated(interval: u64, burst: u32) -> Permit {
    Permit {
        name: name("limit"),
        rate: Some(Rate {
            interval: Duration::from_millis(interval),
            burst,
        }),
        slots: None,
    }
}

fn slotted(slots: u32) -> Permit {
    Permit {
        name: name("limit"),
        rate: None,
        slots: Some(slots),
    }
}

fn asked(holder: &str, permits: &[&Permit], turn: Option<i64>) -> Asked {
    Asked {
        holder: holder.to_owned(),
        permits: permits.iter().copied().cloned().collect(),
        turn,
        claim: None,
    }
}

fn claiming(name: &str, owner: &str, lasts: Duration, is_window: bool) -> Asked {
    Asked {
        holder: owner.to_owned(),
        claim: Some(Claim {
            name: name.to_owned(),
            owner: owner.to_owned(),
            lasts,
            is_window,
        }),
        ..Asked::default()
    }
}

async fn open(store: &Arc<dyn LimitStore>) -> Box<dyn LimitSession> {
    store.connect().await.unwrap()
}

async fn ask(session: &mut dyn LimitSession, asked: Asked) -> Answer {
    let answers = session.exchange(&[Order::Acquire(asked)]).await.unwrap();
    answers.into_iter().next().unwrap()
}

async fn give_back(session: &mut dyn LimitSession, holding: Holding, held: Duration) {
    let answers = session.exchange(&[Order::Release(holding, held)]).await;
    assert_eq!(answers.unwrap(), []);
}

fn denied(answer: Answer) -> (Duration, Option<i64>) {
    match answer {
        Answer::Denied { wait, turn } => (wait, turn),
        other => panic!("{other:?}"),
    }
}

/// Asks until it is granted, as it is told to; answers with how often it asked.
async fn insist(session: &mut dyn LimitSession, mut asked: Asked) -> u32 {
    let deadline = Instant::now() + PATIENCE;
    for times in 1.. {
        match ask(session, asked.clone()).await {
            Answer::Granted => return times,
            Answer::Denied { wait, turn } => {
                asked.turn = turn;
                assert!(Instant::now() + wait < deadline, "{wait:?}");
                tokio::time::sleep(wait).await;
            }
            Answer::Duplicate { of } => panic!("a duplicate of {of}"),
        }
    }
    unreachable!("it asks for ever")
}

async fn requests_take_turns(store: &Arc<dyn LimitStore>) {
    let (mut one, mut two) = (open(store).await, open(store).await);
    let permit = rated(300, 1);
    assert_eq!(
        ask(&mut *one, asked("a", &[&permit], None)).await,
        Answer::Granted
    );
    // All in one call, as a worker asks that has fetched several.
    let wishes = ["b", "c"].map(|holder| Order::Acquire(asked(holder, &[&permit], None)));
    let answers = two.exchange(&wishes).await.unwrap();
    let [(first, turn), (second, next)] = answers
        .into_iter()
        .map(denied)
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let (turn, next) = (turn.unwrap(), next.unwrap());
    assert_eq!(next - turn, 300_000, "an interval lies between two turns");
    assert!(first <= Duration::from_millis(300), "{first:?}");
    assert_eq!(second.checked_sub(first), Some(Duration::from_millis(300)));
    // Another worker may have it then.
    let again = denied(ask(&mut *one, asked("c2", &[&permit], Some(next))).await);
    assert_eq!(again.1, Some(next), "it is too early, and stays its turn");
    assert_eq!(
        insist(&mut *one, asked("b2", &[&permit], Some(turn))).await,
        2
    );
    // Nobody else comes between.
    let last = denied(ask(&mut *two, asked("d", &[&permit], None)).await);
    assert!(last.1.unwrap() > next, "{last:?}");
    assert!(insist(&mut *one, asked("c2", &[&permit], Some(next))).await <= 2);
}

async fn a_burst_begins_at_once(store: &Arc<dyn LimitStore>) {
    let mut session = open(store).await;
    let permit = rated(60_000, 3);
    let wishes = ["a", "b", "c", "d"].map(|holder| Order::Acquire(asked(holder, &[&permit], None)));
    let answers = session.exchange(&wishes).await.unwrap();
    assert_eq!(
        answers[..3],
        [Answer::Granted, Answer::Granted, Answer::Granted]
    );
    let (wait, _) = denied(answers[3].clone());
    assert!(wait <= Duration::from_mins(1) && wait > Duration::from_secs(40));
}

async fn slots_are_given_back(store: &Arc<dyn LimitStore>) {
    let (mut one, mut two) = (open(store).await, open(store).await);
    let permit = slotted(2);
    for holder in ["a", "b", "a"] {
        let answer = ask(&mut *one, asked(holder, &[&permit], None)).await;
        assert_eq!(answer, Answer::Granted, "{holder}");
    }
    let (first, turn) = denied(ask(&mut *two, asked("c", &[&permit], None)).await);
    let (second, _) = denied(ask(&mut *two, asked("d", &[&permit], None)).await);
    assert!(first >= FIRST_LOOK && second > first && turn.is_none());
    let holding = asked("a", &[&permit], None).holding();
    give_back(&mut *one, holding.clone(), Duration::from_millis(10)).await;
    assert_eq!(
        ask(&mut *two, asked("c", &[&permit], None)).await,
        Answer::Granted
    );
    // Twice is once.
    give_back(&mut *one, holding, Duration::from_millis(10)).await;
    denied(ask(&mut *two, asked("d", &[&permit], None)).await);
}

async fn slots_of_the_dead_come_free(store: &Arc<dyn LimitStore>) {
    let mut dying = open(store).await;
    let permit = slotted(1);
    let kept = slotted(1);
    for (holder, permit) in [("dead", &permit), ("alive", &kept)] {
        let answer = ask(&mut *dying, asked(holder, &[permit], None)).await;
        assert_eq!(answer, Answer::Granted);
    }
    drop(dying);
    let mut living = open(store).await;
    let holding = asked("alive", &[&kept], None).holding();
    let start = Instant::now();
    let is_free = async {
        loop {
            let renewed = living.exchange(&[Order::Renew(holding.clone())]).await;
            assert_eq!(renewed.unwrap(), []);
            match ask(&mut *living, asked("heir", &[&permit], None)).await {
                Answer::Granted => break,
                answer => tokio::time::sleep(denied(answer).0.min(LEASE / 20)).await,
            }
        }
    };
    timeout(2 * LEASE, is_free).await.unwrap();
    assert!(start.elapsed() > LEASE / 2, "{:?}", start.elapsed());
    denied(ask(&mut *living, asked("other", &[&kept], None)).await);
}

async fn both_limits_must_allow_it(store: &Arc<dyn LimitStore>) {
    let mut session = open(store).await;
    let (rate, slots) = (rated(200, 1), slotted(1));
    let both = [&rate, &slots];
    assert_eq!(
        ask(&mut *session, asked("a", &both, None)).await,
        Answer::Granted
    );
    // Without a slot it takes no turn.
    let (_, turn) = denied(ask(&mut *session, asked("b", &both, None)).await);
    assert_eq!(turn, None);
    give_back(
        &mut *session,
        asked("a", &both, None).holding(),
        Duration::from_millis(1),
    )
    .await;
    // Without a turn it takes no slot.
    let (_, turn) = denied(ask(&mut *session, asked("b", &both, None)).await);
    assert!(turn.is_some());
    assert_eq!(
        ask(&mut *session, asked("c", &[&slots], None)).await,
        Answer::Granted
    );
}

async fn only_one_of_a_kind_is_under_way(store: &Arc<dyn LimitStore>) {
    let (mut one, mut two) = (open(store).await, open(store).await);
    let kind = name("unique");
    let lasts = Duration::from_secs(30);
    let first = claiming(&kind, "1", lasts, false);
    let second = claiming(&kind, "2", lasts, false);
    assert_eq!(ask(&mut *one, first.clone()).await, Answer::Granted);
    assert_eq!(
        ask(&mut *two, first.clone()).await,
        Answer::Granted,
        "delivered again"
    );
    let duplicate = Answer::Duplicate { of: "1".to_owned() };
    assert_eq!(ask(&mut *two, second.clone()).await, duplicate);
    let holding = |asked: &Asked, lasts| {
        let mut holding = asked.holding();
        if let Some(claim) = &mut holding.claim {
            claim.lasts = lasts;
        }
        holding
    };
    // It ends nobody else's claim, and a retry keeps its own.
    give_back(&mut *two, holding(&second, Duration::ZERO), Duration::ZERO).await;
    give_back(&mut *one, holding(&first, lasts), Duration::ZERO).await;
    assert_eq!(ask(&mut *two, second.clone()).await, duplicate);
    give_back(&mut *one, holding(&first, Duration::ZERO), Duration::ZERO).await;
    assert_eq!(ask(&mut *two, second.clone()).await, Answer::Granted);
    // A claim that nobody renews lapses.
    let short = claiming(&name("unique"), "1", Duration::from_millis(300), false);
    assert_eq!(ask(&mut *one, short.clone()).await, Answer::Granted);
    let mut other = short.clone();
    if let Some(claim) = &mut other.claim {
        "2".clone_into(&mut claim.owner);
    }
    until_granted(&mut *two, &other).await;
}

async fn until_granted(session: &mut dyn LimitSession, asked: &Asked) {
    let lapsed = async {
        while ask(session, asked.clone()).await != Answer::Granted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, lapsed).await.unwrap();
}

async fn a_window_is_kept_to_its_end(store: &Arc<dyn LimitStore>) {
    let mut session = open(store).await;
    let kind = name("unique");
    let lasts = Duration::from_millis(800);
    let start = Timestamp::now();
    let first = claiming(&kind, "1", lasts, true);
    assert_eq!(ask(&mut *session, first.clone()).await, Answer::Granted);
    give_back(&mut *session, first.holding(), Duration::ZERO).await;
    let second = claiming(&kind, "2", lasts, true);
    let answer = ask(&mut *session, second.clone()).await;
    assert_eq!(answer, Answer::Duplicate { of: "1".to_owned() });
    until_granted(&mut *session, &second).await;
    let passed = Timestamp::now().duration_since(start);
    assert!(passed.as_millis() >= 700, "{passed}");
}

async fn many_workers_share_the_slots(store: &Arc<dyn LimitStore>) {
    let permit = slotted(3);
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..4 {
        let (store, permit) = (Arc::clone(store), permit.clone());
        workers.spawn(async move {
            let mut session = open(&store).await;
            let wishes: Vec<Order> = (0..3)
                .map(|number| asked(&format!("{worker}-{number}"), &[&permit], None))
                .map(Order::Acquire)
                .collect();
            let answers = session.exchange(&wishes).await.unwrap();
            let granted = |answer: &&Answer| **answer == Answer::Granted;
            answers.iter().filter(granted).count()
        });
    }
    let granted: usize = workers.join_all().await.into_iter().sum();
    assert_eq!(granted, 3);
}
