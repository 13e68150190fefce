//! What each embedding task asks for, in words: the instructions with which LLM2Vec (arXiv 2404.05961, after E5-Mistral,
//! arXiv 2401.00368) is evaluated on MTEB.

/// Names of tasks, and their instruction. A later version of a task, or the cut of its corpus to hard negatives, has
/// that of the first.
pub const INSTRUCTIONS: [(&[&str], &str); 38] = [
    (
        &["AmazonCounterfactualClassification"],
        "Classify a given Amazon customer review text as either counterfactual or not-counterfactual",
    ),
    (&["Banking77Classification"], "Given a online banking query, find the corresponding intents"),
    (
        &["EmotionClassification"],
        "Classify the emotion expressed in the given Twitter message into one of the six emotions: anger, fear, joy, \
         love, sadness, and surprise",
    ),
    (&["ImdbClassification"], "Classify the sentiment expressed in the given movie review text from the IMDB dataset"),
    (&["MassiveIntentClassification"], "Given a user utterance as query, find the user intents"),
    (&["MassiveScenarioClassification"], "Given a user utterance as query, find the user scenarios"),
    (&["MTOPDomainClassification"], "Classify the intent domain of the given utterance in task-oriented conversation"),
    (&["ToxicConversationsClassification"], "Classify the given comments as either toxic or not toxic"),
    (
        &["TweetSentimentExtractionClassification"],
        "Classify the sentiment of a given tweet as either positive, negative, or neutral",
    ),
    (
        &["ArxivClusteringP2P", "ArXivHierarchicalClusteringP2P"],
        "Identify the main and secondary category of Arxiv papers based on the titles and abstracts",
    ),
    (
        &["ArxivClusteringS2S", "ArXivHierarchicalClusteringS2S"],
        "Identify the main and secondary category of Arxiv papers based on the titles",
    ),
    (&["BiorxivClusteringP2P"], "Identify the main category of Biorxiv papers based on the titles and abstracts"),
    (&["BiorxivClusteringS2S"], "Identify the main category of Biorxiv papers based on the titles"),
    (&["MedrxivClusteringP2P"], "Identify the main category of Medrxiv papers based on the titles and abstracts"),
    (&["MedrxivClusteringS2S"], "Identify the main category of Medrxiv papers based on the titles"),
    (&["StackExchangeClustering"], "Identify the topic or theme of StackExchange posts based on the titles"),
    (
        &["StackExchangeClusteringP2P"],
        "Identify the topic or theme of StackExchange posts based on the given paragraphs",
    ),
    (&["TwentyNewsgroupsClustering"], "Identify the topic or theme of the given news articles"),
    (&["SprintDuplicateQuestions"], "Retrieve duplicate questions from Sprint forum"),
    (&["TwitterSemEval2015", "TwitterURLCorpus"], "Retrieve tweets that are semantically similar to the given tweet"),
    (&["AskUbuntuDupQuestions"], "Retrieve duplicate questions from AskUbuntu forum"),
    (&["MindSmallReranking"], "Retrieve relevant news articles based on user browsing history"),
    (&["SciDocsRR"], "Given a title of a scientific paper, retrieve the titles of other relevant papers"),
    (&["StackOverflowDupQuestions"], "Retrieve duplicate questions from StackOverflow forum"),
    (&["ArguAna"], "Given a claim, find documents that refute the claim"),
    (&["ClimateFEVER"], "Given a claim about climate change, retrieve documents that support or refute the claim"),
    (
        &["CQADupstackGamingRetrieval", "CQADupstackUnixRetrieval"],
        "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the given \
         question",
    ),
    (&["FEVER"], "Given a claim, retrieve documents that support or refute the claim"),
    (&["FiQA2018"], "Given a financial question, retrieve user replies that best answer the question"),
    (&["HotpotQA"], "Given a multi-hop question, retrieve documents that can help answer the question"),
    (&["MSMARCO", "MSMARCO5k"], "Given a web search query, retrieve relevant passages that answer the query"),
    (&["NFCorpus"], "Given a question, retrieve relevant documents that best answer the question"),
    (&["SCIDOCS"], "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper"),
    (&["SciFact"], "Given a scientific claim, retrieve documents that support or refute the claim"),
    (
        &["Touche2020", "Touche2020Retrieval"],
        "Given a question, retrieve detailed and persuasive arguments that answer the question",
    ),
    (&["TRECCOVID"], "Given a query on COVID-19, retrieve documents that answer the query"),
    (
        &["BIOSSES", "SICK-R", "STS12", "STS13", "STS14", "STS15", "STS16", "STS17", "STS22", "STSBenchmark"],
        "Retrieve semantically similar text",
    ),
    (&["SummEvalSummarization"], "Given a news summary, retrieve other semantically similar summaries"),
];

/// The instruction of a task; `None` where none is known.
#[must_use]
pub fn instruction(task: &str) -> Option<&'static str> {
    let first = task.trim_end_matches(".v2").trim_end_matches(".v3").trim_end_matches("HardNegatives");
    INSTRUCTIONS.iter().find(|(names, _)| names.contains(&first)).map(|(_, instruction)| *instruction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::task_sets::{GEM_15, MTEB_ENG_V2};

    #[test]
    fn every_task_of_the_sets_has_one() {
        for task in GEM_15.iter().chain(&MTEB_ENG_V2) {
            assert!(instruction(task).is_some(), "{task}");
        }
        assert_eq!(instruction("FEVERHardNegatives"), instruction("FEVER"));
        assert_eq!(instruction("STS22.v2"), Some("Retrieve semantically similar text"));
        assert_eq!(instruction("BiomedicalClustering"), None);
    }
}
