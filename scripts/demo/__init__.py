"""How the demonstration is made: a tiny OPT language model, and a sentiment task that it cannot do yet.

`words` are what a `grammar` makes reviews of; `reviews` is the task, `tokenizer` and `pretraining` make the model,
`figures` measures it and `readme` says what came of it. Nothing is downloaded: every sentence comes from the grammar,
and the model is pre-trained on such sentences alone.

The task is SST-2 in the form that MeZO uses: after `<sentence> It was` the model has to prefer ` great` for praise and
` terrible` for blame. The pre-training text is built so that the model

* can tell praise from blame: reviews are followed by verdicts such as "I loved it" or "Overall it was awful", which
  agree with the review;
* knows `great` and `terrible` as words that may follow "It was", yet not what they say of a review: which one occurs
  never depends on a review;
* has never read a review followed by a sentence that begins with "It was".

Its accuracy on the task is therefore near chance until fine-tuning routes the sentiment it already perceives to those
two words.
"""
